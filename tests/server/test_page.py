"""The page, in a real browser that talks to a real server."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from page_kit import ARGUMENTS, Site, browser_path, pictures

import infinitevl
from infinitevl.model.modeling import InfiniteVLForConditionalGeneration

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
expect = playwright.expect
PATIENCE = 20_000  # milliseconds: the machine may be busy
expect.set_options(timeout=PATIENCE)

pytestmark = pytest.mark.skipif(browser_path() is None, reason="needs Chromium")
KEY = "a-key-for-the-page"
LOADING = "Failed to load resource"  # said of every response that is an error, also of those the page expects


@pytest.fixture(scope="module")
def browser() -> Iterator["playwright.Browser"]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=browser_path(), args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def frames() -> list[bytes]:
    return pictures(6)


@pytest.fixture(scope="module")
def box() -> InfiniteVLForConditionalGeneration:
    return infinitevl.load()


@pytest.fixture(scope="module")
def site(
    tmp_path_factory: pytest.TempPathFactory, box: InfiniteVLForConditionalGeneration, frames: list[bytes]
) -> Iterator[Site]:
    """With four streams, which tests leave as they are."""
    site = Site(box, tmp_path_factory.mktemp("server"))
    for name in ("North gate", "Workbench", "Loading dock", "Greenhouse"):
        site.stream(name, frames)
    yield site
    site.stop()


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory, box: InfiniteVLForConditionalGeneration) -> Iterator[Site]:
    """A server that wants a key."""
    site = Site(box, tmp_path_factory.mktemp("locked"), KEY)
    yield site
    site.stop()


Opened = Callable[..., "playwright.Page"]


@pytest.fixture
def opened(browser: "playwright.Browser") -> Iterator[Opened]:
    """Opens pages, and checks at the end that none asked another server, or had anything to complain of."""
    contexts, foreign, complaints = [], [], []

    def open(site: Site, path: str = "", **options: object) -> "playwright.Page":
        context = browser.new_context(viewport={"width": 1280, "height": 800}, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.on("request", lambda request: ours(request.url, site) or foreign.append(request.url))
        page.on("console", lambda line: line.type in ("error", "warning") and complaints.append(line.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(site.url + path)
        return page

    yield open
    for context in contexts:
        context.close()
    assert not foreign
    assert not [line for line in complaints if LOADING not in line and "ERR_CONNECTION" not in line]


def ours(url: str, site: Site) -> bool:
    return url.startswith((site.url, "blob:", "data:"))


def test_the_wall_shows_every_stream_with_its_picture_and_numbers(site: Site, opened: Opened) -> None:
    page = opened(site)
    expect(page.locator(".card")).to_have_count(4)
    expect(page.locator(".card img:visible")).to_have_count(4)
    card = page.locator(".card", has_text="North gate")
    expect(card.locator(".source")).to_have_text(re.compile("pushed by a client|no source"))
    expect(card.locator(".badge")).to_have_text(re.compile("live|parked on host|on disk"))
    expect(card.locator(".memory dd")).to_have_text(re.compile(r"\d (K|M)iB"))
    expect(page.locator("#health")).to_contain_text("4 streams")
    assert card.locator("img").evaluate("image => image.naturalWidth") > 0


def test_nothing_is_asked_of_other_servers_and_nothing_fails_to_load(site: Site, opened: Opened) -> None:
    page = opened(site)
    answers: list[int] = []
    page.on("response", lambda response: answers.append(response.status))
    page.reload()
    expect(page.locator(".card img:visible")).to_have_count(4)
    assert page.evaluate("document.querySelector('style, script:not([src])')") is None
    assert max(answers) < 400


def test_an_answer_streams_in_with_the_time_it_is_about(site: Site, opened: Opened) -> None:
    page = opened(site)
    page.get_by_role("link", name="Workbench").click()
    page.get_by_role("textbox", name="Question", exact=True).fill("Which word is on the sign?")
    page.get_by_role("button", name="Ask", exact=True).click()
    answer = page.locator(".answers > li").first
    expect(answer.locator(".question")).to_have_text("Which word is on the sign?")
    expect(answer.locator(".about")).to_contain_text("after 6 frames")
    expect(answer.locator(".answer")).to_have_text(re.compile(r"\w"))
    expect(answer.locator(".time")).to_have_text("0:00.5")
    page.reload()
    expect(page.locator(".answers .question")).to_have_text("Which word is on the sign?")


def test_the_memory_is_drawn_with_a_line_for_each_layer(site: Site, opened: Opened) -> None:
    page = opened(site)
    page.get_by_role("link", name="North gate").click()
    expect(page.locator(".plot .lines path")).to_have_count(6)
    page.locator(".plot").focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowUp")
    expect(page.locator(".reading")).to_have_text(re.compile(r"^at 0:00.*layer \d+, [\d.]+"))


def test_a_standing_question_is_added_and_deleted(site: Site, opened: Opened) -> None:
    page = opened(site)
    page.get_by_role("link", name="Loading dock").click()
    page.get_by_role("textbox", name="Standing question").fill("How many things are there?")
    page.get_by_role("button", name="Add").click()
    standing = page.locator(".standing li")
    expect(standing).to_contain_text("every 10 s")
    standing.get_by_role("button").click()
    expect(standing).to_have_count(0)


def test_the_webcam_is_seen_and_waits_for_answers(site: Site, opened: Opened) -> None:
    page = opened(site, permissions=["camera"])
    sent: list[bool] = []  # a picture went out, or came back as an acknowledgement
    most = 0

    def count(out: bool) -> None:
        nonlocal most
        sent.append(out)
        most = max(most, sum(sent) - (len(sent) - sum(sent)))

    def listen(socket: "playwright.WebSocket") -> None:
        socket.on("framesent", lambda data: isinstance(data, bytes) and count(True))
        socket.on("framereceived", lambda data: '"type":"frame"' in str(data).replace(" ", "") and count(False))

    page.on("websocket", listen)
    page.keyboard.press("n")
    page.get_by_text("Webcam").click()
    page.get_by_label("Name").fill("My desk")
    page.get_by_label("Frames a second").fill("10")
    page.get_by_role("button", name="Start").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("My desk")
    expect(page.locator(".source")).to_contain_text("camera of this tab")
    seen = page.locator(".numbers.wide div", has_text="frames").locator("dd")
    expect(seen).to_have_text(re.compile(r"^([3-9]|\d\d+)$"))
    expect(page.locator(".frame.large img")).to_be_visible()
    assert most <= 2
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.locator(".card")).to_have_count(4)


def test_a_key_is_asked_for_once_and_used_everywhere(locked: Site, opened: Opened, frames: list[bytes]) -> None:
    id = locked.stream("Vault", frames[:1])
    page = opened(locked)
    field = page.get_by_label("Key", exact=True)
    field.fill("not-the-right-one")
    field.press("Enter")
    expect(page.get_by_role("alert").filter(has_text="key")).to_be_visible()
    field.fill(KEY)
    field.press("Enter")
    page.get_by_role("link", name="Vault").click()
    expect(page.locator(".frame.large img")).to_be_visible()
    page.locator("#ask").fill("What is it?")
    page.locator("#ask").press("Enter")
    expect(page.locator(".answers .about")).to_contain_text("after 1 frame ")
    page.reload()
    expect(page.locator(".answers .about")).to_contain_text("after 1 frame ")
    page.get_by_role("button", name="Forget key").click()
    expect(page.get_by_role("heading", name="This server wants a key")).to_be_visible()
    locked.call("DELETE", f"streams/{id}")


def test_everything_goes_by_keyboard(site: Site, opened: Opened) -> None:
    page = opened(site)
    expect(page.locator(".card")).to_have_count(4)
    focused = page.locator(":focus")
    while focused.count() == 0 or "name" not in (focused.get_attribute("class") or ""):
        page.keyboard.press("Tab")
    expect(focused).to_have_text("North gate")
    page.keyboard.press("ArrowRight")
    expect(focused).to_have_text("Workbench")
    page.keyboard.press("End")
    page.keyboard.press("ArrowLeft")
    expect(focused).to_have_text("Loading dock")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("Loading dock")
    page.keyboard.press("/")
    page.keyboard.type("What is there?")
    page.keyboard.press("Enter")
    expect(page.locator(".answers .about")).to_contain_text("after 6 frames")
    page.keyboard.press("ArrowUp")
    expect(page.locator("#ask")).to_have_value("What is there?")
    page.keyboard.press("Escape")
    expect(focused).to_have_text("Loading dock")
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_contain_text("walk over the wall")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)


def test_a_fork_and_a_snapshot_go_their_own_ways(site: Site, opened: Opened) -> None:
    page = opened(site)
    page.get_by_role("link", name="Greenhouse").click()
    page.get_by_role("button", name="Snapshot", exact=True).click()
    page.get_by_label("Name").fill("before-the-storm")
    with page.expect_download() as downloaded:
        page.get_by_role("button", name="Save and download").click()
    assert downloaded.value.suggested_filename == "before-the-storm.safetensors"
    assert Path(downloaded.value.path()).stat().st_size > 1000
    page.get_by_role("button", name="Fork").click()
    page.get_by_role("dialog").get_by_role("button", name="Fork").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Greenhouse fork")
    expect(page.locator(".numbers.wide")).to_contain_text("frames6")
    page.keyboard.press("Escape")
    expect(page.locator(".card")).to_have_count(5)
    fork = next(each["id"] for each in site.call("GET", "streams")["data"] if each["name"] == "Greenhouse fork")
    site.call("DELETE", f"streams/{fork}")  # elsewhere: the wall notices
    expect(page.locator(".card")).to_have_count(4)


def test_dark_and_light_are_the_systems_or_remembered(site: Site, opened: Opened) -> None:
    page = opened(site, color_scheme="dark")
    paper = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(paper)
    page.get_by_role("button", name="Light or dark").click()
    light = page.evaluate(paper)
    page.reload()
    assert page.evaluate(paper) == light
    assert brightness(dark) < 60 < 200 < brightness(light)
    page.keyboard.press("t")
    assert page.evaluate(paper) == dark


def brightness(colour: str) -> float:
    return sum(map(float, re.findall(r"[\d.]+", colour)[:3])) / 3


def test_a_phone_shows_it_all_without_scrolling_sideways(site: Site, opened: Opened) -> None:
    page = opened(site)
    page.set_viewport_size({"width": 360, "height": 740})
    expect(page.locator(".card img:visible")).not_to_have_count(0)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    page.get_by_role("link", name="North gate").click()
    expect(page.locator(".plot .lines path")).to_have_count(6)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    page.get_by_role("button", name="New stream").click()
    assert page.get_by_role("dialog").evaluate("dialog => dialog.scrollWidth <= dialog.clientWidth")


def test_names_and_questions_are_text_and_never_markup(site: Site, opened: Opened, frames: list[bytes]) -> None:
    attack = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    id = site.stream(attack, frames[:1])
    page = opened(site)
    page.on("dialog", lambda dialog: pytest.fail("a script ran"))
    page.get_by_role("link", name=attack).click()
    expect(page.get_by_role("heading", level=1)).to_have_text(attack)
    page.locator("#ask").fill(attack)
    page.locator("#ask").press("Enter")
    expect(page.locator(".answers .question")).to_have_text(attack)
    expect(page.locator(".answers .about")).to_contain_text("after 1 frame ")
    assert page.locator("main script, main [onerror], main img[src=x]").count() == 0
    site.call("DELETE", f"streams/{id}")
    expect(page.get_by_role("alert").filter(has_text="This stream is not there")).to_be_visible()


def test_what_the_server_refuses_is_told_where_it_happened(site: Site, opened: Opened) -> None:
    page = opened(site)
    page.keyboard.press("n")
    dialog = page.get_by_role("dialog")
    dialog.get_by_text("Address").click()
    dialog.get_by_label("Address").last.fill("http://169.254.169.254/")
    dialog.get_by_role("button", name="Start").click()
    expect(dialog.get_by_role("alert")).to_be_visible()
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    page.goto(site.url + "#/stream/stream-none")
    expect(page.get_by_role("alert").filter(has_text="This stream is not there")).to_be_visible()


def test_a_server_that_goes_is_told_of_until_it_is_back(
    tmp_path: Path, box: InfiniteVLForConditionalGeneration, opened: Opened, frames: list[bytes]
) -> None:
    site = Site(box, tmp_path)
    site.stream("North gate", frames[:2])
    page = opened(site)
    page.get_by_role("link", name="North gate").click()
    expect(page.locator(".frame.large img")).to_be_visible()
    site.stop()
    expect(page.locator("#banner")).to_contain_text("The server does not answer.")
    expect(page.get_by_role("heading", level=1)).to_have_text("North gate")
    page.locator("#ask").fill("What is it?")
    page.locator("#ask").press("Enter")
    expect(page.locator(".questions .error")).to_contain_text("Not connected")
    site.start()
    expect(page.locator("#banner")).to_be_hidden()
    expect(page.locator(".stream")).to_have_attribute("data-live", "open")
    page.locator("#ask").press("Enter")
    expect(page.locator(".answers .about")).to_contain_text("after 2 frames")
    site.stop()
