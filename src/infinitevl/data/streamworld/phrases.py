"""How each kind of question is put, in several ways; braces are filled from Truth.fields."""

PHRASES: dict[str, tuple[str, ...]] = {
    "sign_word": (
        "Which word is on the sign?",
        "What word does the sign show?",
        "Read the word on the sign.",
    ),
    "sign_number": (
        "Which number is on the sign?",
        "What number does the sign show?",
        "Read the number on the sign.",
    ),
    "card_value": ("Which {sort} is on the card?", "Read the {sort} on the card.", "What does the card say?"),
    "card_icon": (
        "Which icon is on the card?",
        "What is the icon of the card?",
        "Name the picture on the card.",
    ),
    "colour": (
        "What colour is the {shape}?",
        "Which colour does the {shape} have?",
        "Colour of the {shape}?",
    ),
    "shape": ("Which shape is {colour}?", "What is the {colour} shape?", "What shape is the {colour} thing?"),
    "beside": ("What is {side} the {shape}?", "Which shape is {side} the {shape}?"),
    "count": ("How many shapes are there?", "How many shapes do you see?", "Count the shapes."),
    "extreme": ("Which shape is the {degree}?", "What is the {degree} shape?", "Name the {degree} shape."),
    "place": ("Where is the {shape}?", "In which corner is the {shape}?"),
    "sign_place": ("Where is the sign?", "In which corner is the sign?"),
    "direction": (
        "Which way does the {shape} move?",
        "Where is the {shape} going?",
        "In what direction does the {shape} move?",
    ),
    "moving": ("Is the {shape} moving or still?", "Does the {shape} stand still or is it moving?"),
    "left": ("What just left?", "What has just gone?", "What went out of the picture?"),
    "entered": ("What just came in?", "What has just entered?", "What is new in the picture?"),
    "card": (
        "Which {sort} did the {key} card show?",
        "What {sort} was on the card with the {key}?",
        "Recall the {sort} of the {key} card.",
    ),
    "updated": (
        "What is the newest {sort} of the {key} card?",
        "Which {sort} did the {key} card show last?",
        "Recall the latest {sort} of the {key} card.",
    ),
    "card_key": (
        "Which card showed the {sort} {value}?",
        "What was the icon of the card with {value}?",
        "Which picture was beside {value}?",
    ),
    "first_card": ("Which {sort} did the first card show?", "What {sort} was on the very first card?"),
    "last_card": ("Which {sort} did the last card show?", "What {sort} was on the latest card?"),
    "first_sign": ("Which {sort} did the first sign show?", "What {sort} was on the very first sign?"),
    "previous_sign": (
        "Which {sort} was on the sign in the scene before this one?",
        "What {sort} did the sign of the previous scene show?",
    ),
    "first": (
        "Which card came first, the {one} or the {other}?",
        "Which was shown first, the {one} card or the {other} card?",
    ),
    "later": (
        "Which card was shown last, the {one} or the {other}?",
        "Which is more recent, the {one} card or the {other} card?",
    ),
    "scenes": ("How many scenes so far?", "How many scenes were there so far?", "Count the scenes so far."),
    "cards": ("How many cards so far?", "How many cards were shown so far?", "Count the cards so far."),
    "appeared": ("Did {thing} appear?", "Was there {thing}?", "Has {thing} been shown?"),
    "copy": ("Repeat the word {word}.", "Say {word}.", "Write {word}."),
    "sort": ("Sort {list}.", "Put {list} in order.", "Sort from small to large: {list}"),
    "total": ("What is {a} + {b}?", "{a} + {b} =", "Add {a} and {b}."),
    "backwards": ("Reverse the order: {list}", "Say the words backwards: {list}", "Last word first: {list}"),
    "pick": ("What is the {place} word of {list}?", "Say the {place} word: {list}"),
    "larger": ("Which is larger, {a} or {b}?", "What is the larger number, {a} or {b}?"),
    "repeat": ("Say {word} {times} times.", "Write {word} {times} times."),
}
