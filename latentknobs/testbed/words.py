"""The word lists behind the testbed's prompts. Plain data: every list is small, ordinary and ours."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


GIRLS = _words("""
    Lily Mia Anna Sara Lucy Emma Amy Sue Jane Lola Kim Molly Daisy Rose Ella Zoe Nina Ruby Bella Mary Kate Lisa
    Sally Maya
""")
BOYS = _words("""
    Tom Ben Tim Sam Max Jack John Leo Bob Bill Joe Dan Fin Mark Roy Andy Billy Timmy Jim Peter Nick Ted Fred Alex
""")
ANIMALS = _words("""
    frog cat dog bird fish bear fox duck mouse bunny rabbit pig cow horse turtle squirrel puppy kitten owl bee
    lion crab snail monkey goat
""")
ADJECTIVES = _words("""
    little big small happy sad brave kind clever shy funny curious lonely silly gentle nice old young
""")
PLACES = _words("""
    park garden forest woods farm house yard kitchen zoo beach field school lake river hill village pond store
    barn playground
""")
OBJECTS = _words("""
    ball box book hat toy doll key stick flower rock cake cookie apple boat kite leaf shell balloon bell coin map
    cup blanket drum stone ribbon
""")
OBJECT_ADJECTIVES = _words("red blue big small shiny round pretty soft old new yellow green strange special tiny")
VERBS = _words("play run jump sing dance read draw swim climb explore help paint cook ride hop dig")

# Things that can be counted in a word problem.
COUNTABLES = _words("""
    apples balls books cookies shells stones coins stickers cards flowers eggs pencils toys cakes berries nuts
    stars buttons beads cups hats leaves sticks marbles
""")

# The words a constrained story may have to begin every sentence with.
OPENERS = _words("Then So Now And But Soon")
