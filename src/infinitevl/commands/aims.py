"""What an evaluation of a speed run found, next to what was hoped for."""

from infinitevl.data.worlds import VISUAL
from infinitevl.evaluation.results import Results
from infinitevl.evaluation.scores import Line
from infinitevl.train.report import Aim

TEACHER, RECALL = 0.97, 0.9
BEHIND, NEAR = 0.01, 0.01  # how far the student may be behind the teacher, and what counts as chance be above it


def aims(teacher: Results, student: Results | None, last: Results) -> list[Aim]:
    """teacher, student: after the first and the second stage of the paper, the same test; last: of the last model."""
    found = _perception(teacher)
    seen = _perception(student) if student else {}
    return [
        *(_at_least(f"teacher: {group}", line, TEACHER) for group, line in found.items()),
        *(_behind(group, line, found[group]) for group, line in seen.items()),
        *_recall(last),
        *_longest(last),
    ]


def _perception(results: Results) -> dict[str, Line]:
    lines = {line.group: line for line in results.of("perception")}
    return {group: lines[group] for group in VISUAL}


def _at_least(about: str, line: Line, least: float, of: str = "") -> Aim:
    met = line.accuracy >= least
    short = f"{about}: {100 * line.accuracy:.1f}% is {100 * (least - line.accuracy):.1f} points short of {least:.0%}."
    return Aim(about, f"at least {least:.0%}{of}", 100 * line.accuracy, _shown(line), met, "" if met else short)


def _behind(group: str, student: Line, teacher: Line) -> Aim:
    """Where the teacher guesses there is nothing to be behind."""
    points = round(100 * (student.accuracy - teacher.accuracy), 6)
    about, aim = f"student after II: {group}", f"within {100 * BEHIND:g} point of the teacher"
    shown, met = f"{points:+.1f} points: {_shown(student)}", points >= -100 * BEHIND
    if _guesses(teacher):
        return Aim(f"{about} (the teacher guesses)", aim, points, shown)
    missed = f"{about}: {-points:.1f} points behind the teacher, more than {100 * BEHIND:g}."
    return Aim(about, aim, points, shown, met, "" if met else missed)


def _recall(last: Results) -> list[Aim]:
    """Of the oldest facts, by the model and by the one whose memory is emptied at every edge of the window."""
    facts, age = last.plan.facts, max(last.plan.ages)
    cell, about = {"cards": facts, "windows": age}, f"recall: {facts} facts, {age:g} windows old"
    told = "" if (facts, age) == (8, 16) else " (8 facts, 16 windows)"
    found = [_at_least(about, line, RECALL, told) for line in last.of("memory", "model", **cell)]
    knows = not any(_guesses(line) for line in last.of("memory", "model", **cell))
    emptied = last.of("memory", "amnesic", **cell)
    return [*found, *(_amnesic(f"{about}, amnesic", line, last, knows) for line in emptied)]


def _amnesic(about: str, line: Line, last: Results, knows: bool) -> Aim:
    """Where attention alone still reaches the facts, or they are not known with the memory, nothing can be told."""
    reach = last.model["reach"]
    if not knows:
        return Aim(f"{about} (the model guesses, too)", "chance", 100 * line.accuracy, _shown(line))
    if line.windows is not None and line.windows <= reach:
        return Aim(f"{about} (attention reaches {reach} back)", "chance", 100 * line.accuracy, _shown(line))
    met = _guesses(line)
    missed = f"{about}: {100 * line.accuracy:.1f}% is above the chance of {100 * line.chance:.1f}%."
    return Aim(about, "chance", 100 * line.accuracy, _shown(line), met, "" if met else missed)


def _longest(last: Results) -> list[Aim]:
    """Of the oldest facts in the longest stream, with and without mitigation."""
    lines = last.of("length")
    place = max(((line.tokens or 0, line.windows or 0) for line in lines), default=None)
    return [
        Aim(
            f"recall after {line.tokens:,} tokens, {line.windows:g} windows old: {line.variant}",
            "measured", 100 * line.accuracy, _shown(line),
        )
        for line in sorted(lines, key=lambda line: line.variant != "model")
        if (line.tokens, line.windows) == place
    ]  # fmt: skip


def _guesses(line: Line) -> bool:
    return line.low <= line.chance + NEAR


def _shown(line: Line) -> str:
    """Accuracy, its interval, and what a guesser gets."""
    interval = f"{100 * line.low:.1f}-{100 * line.high:.1f}"
    return f"{100 * line.accuracy:.1f}% ({interval}; chance {100 * line.chance:.1f}; {line.asked:,} asked)"
