"""Words for the facts of an arrangement: synonyms for each instrument, kind, tempo, mood, room and loudness.

Phrases include their article; phrases without one are plurals. The words of benchmarks/paraphrases.py must not be added
here, so that its sentences stay new to models trained on this corpus (checked in tests/test_captions.py).
"""

import re
from collections.abc import Sequence

# Mood words by (mode, tempo class). Captions state moods by this rule only.
MOODS = {
    ("major", "fast"): (
        "cheerful", "happy", "lively", "joyful", "upbeat", "playful", "merry", "jolly", "high-spirited", "exuberant",
    ),
    ("major", "moderate"): (
        "pleasant", "warm", "light-hearted", "friendly", "good-natured", "easygoing", "contented", "carefree", "cheery",
    ),
    ("major", "slow"): (
        "peaceful", "calm", "gentle", "tender", "relaxing", "soothing", "serene", "tranquil", "dreamy", "restful",
    ),
    ("minor", "fast"): (
        "urgent", "restless", "tense", "driving", "dramatic", "agitated", "intense", "stormy", "anxious", "feverish",
    ),
    ("minor", "moderate"): (
        "wistful", "serious", "moody", "dark", "brooding", "pensive", "uneasy", "bittersweet", "troubled",
    ),
    ("minor", "slow"): (
        "sad", "melancholic", "mournful", "sombre", "sorrowful", "doleful", "plaintive", "melancholy", "grieving",
    ),
}  # fmt: skip
# Adjectives. "Lively" is not among them: it is a mood word, which does not fit fast music in a minor key.
TEMPO_WORDS = {
    "slow": (
        "slow", "unhurried", "slow-paced", "laid-back", "leisurely", "downtempo", "slow-moving", "largo", "adagio",
    ),
    "moderate": (
        "medium-tempo", "moderate", "mid-tempo", "medium-paced", "moderately paced", "andante", "steady",
        "moderato",
    ),
    "fast": (
        "fast", "quick", "fast-paced", "up-tempo", "brisk", "rapid", "swift", "speedy", "allegro", "uptempo",
    ),
}  # fmt: skip
# For "the tempo is ...".
TEMPO_IS = {
    "slow": ("slow", "unhurried", "leisurely", "largo", "adagio", "relaxed"),
    "moderate": ("medium", "moderate", "steady", "moderato", "andante"),
    "fast": ("fast", "quick", "brisk", "rapid", "allegro", "high"),
}
TEMPO_NOUNS = {
    "slow": ("a slow tempo", "a slow pace", "a leisurely pace", "an unhurried tempo", "a relaxed pace", "a slow beat"),
    "moderate": ("a medium tempo", "a moderate tempo", "a moderate pace", "a medium pace", "a steady walking pace"),
    "fast": ("a fast tempo", "a quick pace", "a brisk tempo", "a fast pace", "a rapid tempo", "high speed"),
}
# Names of the lead instruments. A caption names the lead by one of these or by one of PEOPLE.
LEADS = {
    "piano": ("a piano", "an acoustic piano", "a pianoforte", "a concert piano", "piano keys"),
    "church organ": ("a church organ", "a pipe organ", "an organ", "organ pipes", "a big church organ"),
    "string ensemble": (
        "a string ensemble", "strings", "a string section", "a string orchestra", "orchestral strings",
        "massed strings",
    ),
    "choir": ("a choir", "choral voices", "a wordless choir", "a chorus", "a choir of voices", "choir voices"),
    "trumpet": ("a trumpet", "a brass trumpet", "a bright trumpet", "an orchestral trumpet", "an open trumpet"),
    "trombone": ("a trombone", "a brass trombone", "a tenor trombone", "a bold trombone", "an orchestral trombone"),
    "flute": ("a flute", "a concert flute", "a transverse flute", "an orchestral flute", "a silver flute"),
    "acoustic guitar": (
        "an acoustic guitar", "a steel-string guitar", "a steel string acoustic guitar", "an unplugged guitar",
        "a guitar", "a folk guitar",
    ),
    "vibraphone": ("a vibraphone", "vibes", "a vibraharp", "a mallet vibraphone", "a set of vibes"),
    "celesta": ("a celesta", "a music-box-like celesta", "a celeste", "a bell-like celesta", "a chiming celesta"),
    "tubular bells": (
        "tubular bells", "orchestral chimes", "church bells", "tubular chimes", "a set of chimes", "orchestral bells",
    ),
    "synth lead": (
        "a synth lead", "a sawtooth synthesizer", "an electronic synth lead", "a lead synthesizer", "a sawtooth lead",
        "a synthesiser lead", "a lead synth",
    ),
    "synth bass": (
        "a synth bass", "a bass synthesizer", "an electronic bass synth", "a bass synth", "a synthesised bass",
        "an electronic bass",
    ),
    "steel drums": ("steel drums", "a steel pan", "Caribbean steel drums", "a steelpan", "steel pans", "a steel drum"),
    "harpsichord": (
        "a harpsichord", "a plucked harpsichord", "a cembalo", "an early-music harpsichord", "a baroque harpsichord",
    ),
    "fiddle": ("a fiddle", "a violin", "a folk fiddle", "an acoustic violin", "a fiddle or violin"),
    "sitar": ("a sitar", "an Indian sitar", "a plucked sitar", "a North Indian sitar", "an acoustic sitar"),
    "banjo": ("a banjo", "a plucked banjo", "an acoustic banjo", "a folk banjo", "an old-time banjo"),
    "bagpipe": ("bagpipes", "a bagpipe", "a set of bagpipes", "Scottish bagpipes", "Highland bagpipes", "the pipes"),
    "electric piano": (
        "an electric piano", "a mellow electric piano", "electric keys", "an e-piano", "an amplified piano",
    ),
}  # fmt: skip
PEOPLE = {
    "piano": "a pianist", "church organ": "an organist", "choir": "a choir", "trumpet": "a trumpeter",
    "trombone": "a trombonist", "flute": "a flautist", "acoustic guitar": "an acoustic guitarist",
    "vibraphone": "a vibraphonist", "harpsichord": "a harpsichordist", "fiddle": "a fiddler", "sitar": "a sitarist",
    "banjo": "a banjoist", "bagpipe": "a bagpiper",
}  # fmt: skip
KINDS = {
    "folk tune": ("folk tune", "folk melody", "folk song without words", "traditional tune", "traditional melody"),
    "dance tune": ("folk dance", "dance tune", "folk dance tune", "traditional dance", "dance melody"),
    "jig": ("jig", "dance jig", "jig tune", "traditional jig", "folk jig"),
    "slip jig": ("slip jig", "slip jig tune", "traditional slip jig", "folk slip jig"),
    "reel": ("reel", "reel tune", "traditional reel", "folk reel", "dance reel"),
    "hornpipe": ("hornpipe", "hornpipe dance", "hornpipe tune", "traditional hornpipe", "folk hornpipe"),
    "strathspey": ("strathspey", "strathspey dance", "strathspey tune", "traditional strathspey"),
    "air": ("air", "song-like air", "singable air", "folk air", "traditional air"),
    "waltz": ("waltz", "waltz tune", "dance in waltz time", "folk waltz"),
    "march": ("march", "marching tune", "march tune", "processional march"),
    "minuet": ("minuet", "old minuet", "minuet dance", "old-time minuet"),
    "gavotte": ("gavotte", "gavotte dance", "old gavotte"),
    "walkaround": ("walkaround", "walkaround dance", "walkaround tune"),
    "clog dance": ("clog dance", "clog", "clog dance tune", "traditional clog dance"),
    "highland fling": ("highland fling", "Scottish fling", "highland dance", "Scottish highland fling"),
    "chorale": ("chorale", "chorale by Bach", "hymn-like chorale", "Bach chorale", "church chorale"),
    "string quartet movement": (
        "string quartet movement", "piece of chamber music", "movement from a string quartet",
        "classical quartet piece", "chamber music movement",
    ),
    "sonata movement": ("sonata movement", "movement from a sonata", "piece from a sonata", "sonata piece"),
    "ragtime": ("ragtime piece", "rag", "ragtime", "ragtime tune", "ragtime dance"),
    "game music": (
        "video game track", "piece of game music", "video game soundtrack", "computer game tune", "video game tune",
        "game soundtrack",
    ),
    "polonaise": ("polonaise", "polonaise dance", "Romantic polonaise"),
    "mazurka": ("mazurka", "mazurka dance", "Chopin mazurka"),
    "art song": ("art song", "classical song", "concert song", "Romantic song"),
    "opera aria": ("opera aria", "aria", "aria from an opera", "operatic aria"),
    "piano trio movement": ("piano trio movement", "movement from a piano trio", "piece of chamber music"),
    "trio sonata movement": ("trio sonata movement", "movement from a trio sonata", "Baroque trio sonata piece"),
    "concertino": ("concertino", "concertino piece", "little concerto"),
    "song": ("song", "song melody", "old song", "song tune"),
    "hymn": ("hymn", "hymn tune", "church hymn", "church song"),
}  # fmt: skip
# For "There is ...", "with ...".
ROOMS = {
    "dry": ("a dry, close sound", "no reverb", "no echo", "a dry sound", "a close, direct sound", "hardly any reverb"),
    "room": (
        "a little room sound", "some room ambience", "a touch of reverb", "a little reverb", "a light room reverb",
    ),
    "hall": (
        "a lot of reverb", "the echo of a large hall", "a spacious, reverberant sound", "plenty of echo",
        "a concert hall reverb", "a big hall sound",
    ),
}  # fmt: skip
ROOM_TAGS = {
    "dry": ("dry", "dry sound", "no reverb", "close sound"),
    "room": ("room sound", "a little reverb", "room ambience"),
    "hall": ("hall reverb", "reverberant", "echoing", "large hall", "lots of reverb"),
}
LOUD = ("loud", "strong and loud", "at high volume", "forceful and loud", "loud and full")
QUIET = ("quiet", "hushed", "at a quiet volume", "faint and quiet", "rather quiet")
DRUMS = ("drums", "a drum beat", "a drum kit", "a drummer", "percussion", "drums and percussion", "a drum groove")
SOLO = ("solo", "unaccompanied", "all alone", "with no accompaniment", "on its own", "without any accompaniment")
SOLO_HARMONY = (
    "alone in full harmony", "solo, with several voices in harmony", "unaccompanied, in rich harmony",
    "solo, in chords and harmony",
)  # fmt: skip
SOLO_LINE = ("as a single melodic line without accompaniment", "solo, a single line of melody", "one melody line alone")
# Synonyms for accompanying instruments; instruments that are not listed keep their names.
COMPANIONS = {
    "piano chords": ("piano chords", "chords on a piano", "a piano", "a piano playing chords"),
    "strummed guitar chords": ("strummed guitar chords", "a strummed guitar", "guitar chords", "a guitar"),
    "organ chords": ("organ chords", "chords on an organ", "an organ", "an organ playing chords"),
    "string chords": ("string chords", "chords on strings", "strings", "background strings"),
    "a string drone": ("a string drone", "a constant drone of strings", "droning strings"),
    "an organ drone": ("an organ drone", "a constant organ note", "a droning organ"),
    "a bagpipe drone": ("a bagpipe drone", "a constant bagpipe note", "droning pipes"),
    "an upright bass": ("an upright bass", "a double bass", "a plucked double bass", "an acoustic bass"),
    "a bass guitar": ("a bass guitar", "an electric bass", "a bass line", "electric bass guitar"),
    "strings": ("strings", "a string section", "orchestral strings"),
    "brass": ("brass", "a brass section", "brass instruments"),
    "mallets": ("mallets", "mallet instruments"),
    "synth pads": ("synth pads", "synthesizer pads", "pads"),
}


def with_article(phrase: str) -> str:
    """Adds the indefinite article to a phrase."""
    return f"{'an' if phrase[0].lower() in 'aeiou' else 'a'} {phrase}"


def bare(phrase: str) -> str:
    """Removes the article from a phrase."""
    return re.sub(r"^(an?|the) ", "", phrase)


def join(phrases: Sequence[str]) -> str:
    """Joins phrases: "drums, strings and a bass"."""
    return phrases[0] if len(phrases) == 1 else ", ".join(phrases[:-1]) + " and " + phrases[-1]


def capital(text: str) -> str:
    """Capitalizes the first letter and leaves the others unchanged."""
    return text[0].upper() + text[1:]
