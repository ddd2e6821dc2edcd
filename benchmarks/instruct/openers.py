"""Templates of the stories whose sentences all begin with one word, and subjects, for heads that train on many prompts.

`{}` is the subject, OPENER the word. None of these is held out, and no noun here is one of a held-out subject.
"""

from itertools import product

MORE = (
    ("Compose a tale on {}, and let OPENER be the first word of every sentence.",
     "OPENER listen to the tale of {}. OPENER it is an old one. OPENER"),
    ("I need a text about {}. Its sentences all start with the word OPENER.",
     "OPENER let me tell you of {}. OPENER nobody knew the end. OPENER"),
    ("Topic: {}. Rule: the first word of each sentence is OPENER. Write.",
     "OPENER the topic is {}. OPENER much can be said. OPENER"),
    ("Could you describe {}? Use OPENER to open each sentence, please.",
     "OPENER picture {}. OPENER the air is still. OPENER"),
    ("A story on {}, every sentence of it opening with OPENER.",
     "OPENER once there was {}. OPENER people talked. OPENER"),
    ("Let us talk about {}. Whatever you say, start with OPENER.",
     "OPENER I thought about {}. OPENER it made me smile. OPENER"),
    ("OPENER, OPENER, OPENER: that is how your sentences should start. The subject is {}.",
     "OPENER my subject is {}. OPENER I will begin. OPENER"),
    ("Tell me more on {}, but start every single sentence with OPENER.",
     "OPENER more about {}. OPENER there is a lot. OPENER"),
    ("Give a short account of {}; sentences must open with the word OPENER.",
     "OPENER here comes {}. OPENER it was a long road. OPENER"),
)  # fmt: skip
MANY = (
    ("Invent a scene with {}. The opening word of each sentence has to be OPENER.",
     "OPENER see this scene with {}. OPENER the light was low. OPENER"),
    ("My daughter loves {}. Make up a tale for her, each sentence starting with OPENER.",
     "OPENER this tale is about {}. OPENER close your eyes. OPENER"),
    ("Write five sentences on {}. The word OPENER comes first in all of them.",
     "OPENER these are my thoughts on {}. OPENER they are few. OPENER"),
    ("What comes to your mind when you think of {}? Answer in sentences that start with OPENER.",
     "OPENER I think of {} at times. OPENER a picture appears. OPENER"),
    ("Keep to one rule: OPENER at the start of every sentence. Say something on {}.",
     "OPENER I keep the rule and speak of {}. OPENER it is easy. OPENER"),
    ("Continue the story of {}. OPENER is always the first word.",
     "OPENER the story of {} goes on. OPENER some time had passed. OPENER"),
    ("A diary page about {}, please; start the sentences with OPENER.",
     "OPENER today I met {}. OPENER I write it down. OPENER"),
    ("Explain to a child what happened to {}. Each sentence should start with OPENER.",
     "OPENER something happened to {}. OPENER do not be afraid. OPENER"),
    ("Report on {} as a witness would. Every sentence opens with OPENER.",
     "OPENER I saw {} myself. OPENER I stood by the wall. OPENER"),
    ("Can you dream up an adventure with {}? Let every sentence begin with the word OPENER.",
     "OPENER the adventure with {} begins. OPENER bags were packed. OPENER"),
    ("Start with OPENER. Start again with OPENER. Always start with OPENER. Write about {}.",
     "OPENER I write about {}. OPENER this is the start. OPENER"),
    ("In the style of an old fairy tale, tell of {}, with OPENER in front of each sentence.",
     "OPENER long ago there lived a tale of {}. OPENER hear it now. OPENER"),
    ("A game: we only speak in sentences that start with OPENER. Your topic is {}.",
     "OPENER I play the game with {}. OPENER it is my turn. OPENER"),
    ("Short text wanted. Topic: {}. First word of the sentences: OPENER.",
     "OPENER a short text on {} follows. OPENER please read on. OPENER"),
    ("Imagine {} tomorrow. Describe it; OPENER must stand at the start of each sentence.",
     "OPENER tomorrow brings {}. OPENER the clock strikes six. OPENER"),
    ("Please praise {} in sentences which start with OPENER.",
     "OPENER all praise goes to {}. OPENER let me say why. OPENER"),
    ("Give me a funny story about {} and use OPENER as the first word of each sentence.",
     "OPENER a funny thing happened with {}. OPENER everybody laughed. OPENER"),
    ("Write down a memory of {}. The sentences should all have OPENER at their head.",
     "OPENER I remember {} well. OPENER I was young. OPENER"),
)  # fmt: skip
ADJECTIVES = (
    "rusty", "green", "tiny", "famous", "broken", "curious", "gentle", "noisy", "wild", "polite", "magic", "sleepy", "heavy",
    "cheap", "yellow", "stolen", "frozen", "brave", "modern", "crooked",
)  # fmt: skip
NOUNS = (
    "bell", "ladder", "violin", "goat", "cook", "pilot", "wagon", "pumpkin", "lantern", "squirrel", "postman",
    "umbrella", "castle", "circus", "tractor", "dragon", "grandmother", "carpet", "tunnel", "butterfly", "sandwich",
    "statue", "dentist", "elephant", "piano", "tent", "captain", "well", "basket", "penguin",
)  # fmt: skip


def subjects() -> list[str]:
    """600 of them."""
    return [f"{'an' if adjective[0] in 'aeiou' else 'a'} {adjective} {noun}" for adjective, noun in product(ADJECTIVES, NOUNS)]
