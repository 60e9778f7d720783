"""Patterns with which human_captions.py finds facts in people's sentences: lower case, matched at word boundaries.

They are strict: dropping a sentence costs little, while a wrong pair teaches a wrong word.
"""

import dataclasses

_DANCES = (
    "jig", "slip jig", "reel", "hornpipe", "clog dance", "strathspey", "highland fling", "waltz", "walkaround",
    "dance tune",
)  # fmt: skip
_TUNES = (*_DANCES, "air", "march", "folk tune")
_CLASSICAL = (
    "chorale", "string quartet movement", "sonata movement", "minuet", "gavotte", "polonaise", "mazurka", "art song",
    "opera aria", "piano trio movement", "trio sonata movement", "concertino",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Mood:
    """Words for a mood, and the clips they fit.

    Attributes:
      pattern: matched at word boundaries.
      modes: modes that fit the mood; "" is an uncertain mode.
      tempi: tempo classes that fit the mood.
    """

    pattern: str
    modes: tuple[str, ...]
    tempi: tuple[str, ...]


OTHER = "other"  # instruments that are not leads of the corpus

# In search order: matches are masked in the text before the next pattern is tried.
INSTRUMENTS = {
    "steel drums": r"steel[- ]?(?:drum|pan)s?(?:-orchestra)?|steel drum band",
    "synth bass": r"(?:synth|synthesi[sz]er|synthesi[sz]ed)[- ]bass(?:[- ]?lines?)?|bass synth(?:esi[sz]er)?s?",
    "synth lead": (
        r"(?:synth|synthesi[sz]er|synthesi[sz]ed) (?:lead|melody|lead melody)s?|(?:lead|sawtooth|saw) "
        r"synth(?:esi[sz]er)?s?|sawtooth leads?"
    ),
    "electric piano": r"electric pianos?|e-pianos?|electric keys|(?:fender )?rhodes(?: pianos?)?(?! organ)|wurlitzers?",
    "acoustic guitar": (
        r"(?:acoustic|steel[- ]string(?:ed)?|folk|unplugged|fingerpicked) (?:(?:rhythm|lead|steel|solo|"
        r"folk) )?guitars?|acoustic guitarists?"
    ),
    "string ensemble": (
        r"string (?:ensemble|section|orchestra|symphony)s?|orchestral strings|violins|violin section|"
        # Not the strings of an instrument.
        r"(?<!guitar )(?<!plucked )(?<!picked )(?<!nylon )(?<!steel )(?<!open )(?<!metal )(?<!fretted )(?<!muted )"
        r"(?<!of the )(?<!heart )(?<!sympathetic )strings(?! of)"
    ),
    "tubular bells": (
        r"tubular (?:bell|chime)s?|church bells?|orchestral (?:bell|chime)s|(?<!wind )(?<!bar )(?<!door )chimes"
    ),
    # Before the leads whose names are contained in these.
    OTHER: (
        r"acoustic bass(?: guitar)?|(?:hammond|electric|mouth|barrel|amplified|jazz|keyboard|synth|rock|"
        r"mechanical) organs?|"
        r"(?:toy|digital|synth|synthesi[sz]ed|electronic|thumb|muffled|honky[- ]tonk|prepared|electric) pianos?|"
        r"pan flutes?|"
        r"(?:chinese|horsehead|horse head|two[- ]string(?:ed)?|electric) (?:fiddle|violin)s?|"
        r"(?:wind|bar|hand|sleigh|cow|jingle|synth|school|door|shimmering|mellow) (?:chime|bell)s?|"
        r"(?:children's|children|kids?|boys?|gospel|female|male) choirs?|electric sitars?|(?<!piano )keys|"
        r"stringed|string instruments?|"
        r"(?:electric|e-?|bass|steel|rhythm|lead|distorted|spanish|classical|nylon|hawaiian|slide|pedal|"
        r"twangy)?[- ]?guitars?|"
        r"guitarists?|e-guitars?|(?:e-)?bass(?:es|line|lines|ist)?|contrabass|bells?|keyboards?|keyboardist|"
        r"synth(?:s|esi[sz]ers?|esi[sz]ed)?|synthetic|pads?|saxophones?|sax|clarinets?|oboes?|bassoons?|"
        r"piccolos?|recorders?|"
        r"(?:french )?horns?|tubas?|cornets?|bugles?|flugelhorns?|brass|woodwinds?|winds?|reeds?|orchestras?|"
        r"orchestral|"
        r"orchestration|symphon(?:y|ic)|cellos?|violas?|harps?|autoharps?|lyres?|mandolins?|mandola|ukuleles?|"
        r"lutes?|ouds?|"
        r"balalaikas?|bouzoukis?|dulcimers?|zithers?|kotos?|guzhengs?|pipas?|erhus?|shamisens?|sarods?|"
        r"santoors?|veenas?|"
        r"tanpuras?|tamburas?|dobros?|resonators?|accordions?|concertinas?|harmonicas?|harmoniums?|melodicas?|"
        r"didgeridoos?|shofars?|theremins?|kalimbas?|mbiras?|marimbas?|xylophones?|glockenspiels?|idiophones?|"
        r"chordophones?|aerophones?|timpani|tablas?|dholaks?|dhols?|mridangams?|congas?|bongos?|djembes?|"
        r"cajons?|timbales?|"
        r"tambourines?|shakers?|maracas|triangles?|cowbells?|woodblocks?|wood blocks?|gongs?|castanets|claves|"
        r"guiros?|"
        r"taikos?|bodhr[aá]ns?|darbukas?|washboards?|singing bowls?|turntables?|samplers?|scratch\w*|riser|808|"
        r"whistles?|ocarinas?|pungi|shehnai|duduk|ney|beatbox\w*|plucks?|theorbo|jaw harp|organ grinder|mallets?"
    ),
    "church organ": r"(?:church |pipe |cathedral )?organs?|organists?",
    "harpsichord": r"harpsichords?|cembalos?|harpsichordists?",
    "piano": r"(?:grand |acoustic |upright )?pianos?(?: keys)?|pianofortes?|pianists?",
    "choir": r"choirs?|choral voices|choral",
    "trumpet": r"trumpets?|trumpeters?",
    "trombone": r"trombones?|trombonists?",
    "flute": r"flutes?|flautists?|flutists?",
    "vibraphone": r"vibraphones?|vibraharps?",
    "celesta": r"celestas?|celestes?|music boxe?s?",
    "fiddle": r"violin|fiddles?|fiddlers?|violinists?",
    "sitar": r"sitars?|sitarists?",
    "banjo": r"banjos?|banjoists?",
    "bagpipe": r"bagpipes?|bagpipers?|pipers?",
}

# The same rule as in caption_words.MOODS, with the words that people use.
MOODS = {
    "happy": Mood(
        r"happy|happily|cheerful|cheery|cheerfully|joyful|joyous|joy|upbeat|playful|playfully|merry|jolly|"
        r"festive|fun|"
        r"funny|bouncy|bubbly|uplifting|lighthearted|light-hearted|jovial|optimistic|positive|celebratory|peppy|"
        r"perky",
        ("major", "mixolydian"), ("moderate", "fast"),
    ),
    "calm": Mood(
        r"calm|calming|peaceful|relaxing|relaxed|soothing|tranquil|serene|easygoing|"
        r"easy-going|restful|meditative|pleasant|sweet|chill|lullaby|heavenly|comforting",
        ("major", "mixolydian"), ("slow", "moderate"),
    ),
    "gentle": Mood(
        r"gentle|gently|mellow|tender|tenderly|delicate|delicately|warm|dreamy|soft|softly|lullaby|romantic|"
        r"sentimental",
        ("major", "mixolydian", "minor", ""),
        ("slow", "moderate"),
    ),
    "sad": Mood(
        r"sad|sadly|sadness|melancholic|melancholy|melancholically|mournful|sorrowful|somber|sombre|plaintive|gloomy|"
        r"depressing|heartbreaking|heart-breaking|poignant|wistful|grim|grief|pensive",
        ("minor",), ("slow", "moderate"),
    ),
    "tense": Mood(
        r"tense|tension|suspenseful|suspense|dramatic|urgent|intense|aggressive|agitated|anxious|stormy|restless|"
        r"frantic|manic",
        ("minor",), ("moderate", "fast"),
    ),
    "dark": Mood(
        r"dark|ominous|sinister|eerie|haunting|hauntingly|scary|spooky|creepy|menacing|moody|brooding|"
        r"mysterious|horror",
        ("minor",), ("slow", "moderate", "fast"),
    ),
    "energetic": Mood(
        r"energetic|energetically|energy|spirited|vigorous|lively|vivacious|exciting|animated|exuberant|peppy|"
        r"vibrant|"
        r"thrilling|buoyant|danceable|driving|dynamic",
        ("major", "mixolydian", "minor", ""), ("fast",),
    ),
}  # fmt: skip
TEMPI = {
    "slow": r"slow|slowly|slow-paced|slower|downtempo|down-tempo|unhurried|leisurely|laid-back|laid back|adagio|largo",
    "moderate": (
        r"medium[- ](?:tempo|paced?|fast|slow)|tempo is (?:\w+ )?medium|mid[- ]?tempo|moderate|"
        r"moderately|"
        r"andante|steady tempo"
    ),
    "fast": r"fast|faster|fast-paced|up-?tempo|rapid|rapidly|quick|quickly|brisk|briskly|allegro|speedy|high tempo",
}
# Kinds of the corpus that fit a word.
KINDS = {
    r"jigs?": ("jig", "slip jig"),
    r"reels?": ("reel",),
    r"hornpipes?": ("hornpipe",),
    r"waltz(?:es)?": ("waltz",),
    r"march(?:es)?": ("march",),
    r"minuets?": ("minuet",),
    r"gavottes?": ("gavotte",),
    r"chorales?": ("chorale",),
    r"hymns?": ("hymn", "chorale"),
    r"ragtime|rag": ("ragtime",),
    r"string quartets?|quartets?|chamber music": ("string quartet movement",),
    r"sonatas?": ("sonata movement", "trio sonata movement"),
    r"aria|opera|operatic": ("opera aria",),
    r"polonaises?": ("polonaise",),
    r"mazurkas?": ("mazurka",),
    r"(?:video|computer|arcade) ?games?|game (?:music|soundtrack)": ("game music",),
    r"folk dances?": _DANCES,
    r"folk|folky|traditional|folkloric|irish|celtic|gaelic": _TUNES,
    r"classical|baroque": _CLASSICAL,
}
SOLO = (
    r"solo|unaccompanied|alone|only instrument|sole instrument|single instrument|nothing else|by itself|on its own|"
    r"only instrument(?:al)? being played|(?:is|are) the only"
)
NO_OTHERS = (
    r"(?:no|without|without any) (?:other )?(?:accompaniment|instruments?|instrumentation|backing)|"
    r"no other (?:\w+ )?(?:instruments?|instrumentation|accompaniment)"
)
NO_DRUMS = r"(?:no|without|without any) (?:drums?|percussion|percussions|beat)(?: (?:or|and) \w+)?"
# Negations, removed before any search.
NEGATED = (
    rf"\b(?:{NO_OTHERS}|{NO_DRUMS}|(?:no|without|without any|does not have any|doesn't have any) "
    r"(?:\w+ )?(?:voices?|vocals?|singers?|singing|lyrics|words|speech))\b"
)
DRUMS = (
    r"drums?|drumming|drummers?|drumbeats?|drum beats?|drum kit|percussion|percussions|percussive|snares?|cymbals?|"
    r"hi-?\s?hats?|kick|kicks|toms?|rimshots?|beats?(?! (?:of|per))"
)
ACCOMPANIED = r"accompan\w+|backing|backed|background|alongside|together with|duet|ensemble|band|supported"
# Before the lead's name, these mean that it only accompanies.
SIDE_ROLES = (
    r"accompanied|accompaniment|accompanying|backed|supported|supporting|background|along with|along to|"
    r"alongside|backing|also|underneath|support|"
    r"on top of"
)
# If no other instrument is named, these mean that the lead itself only accompanies.
BEHIND = (
    r"background|backing|accompaniment|accompanies|accompanying|accompanied|backed|supporting|supports|supported|"
    r"alongside|along with|along to|also|fills?|filler|context|support|underneath|rhythm|rhythmic|countermelody|"
    r"behind|together with"
)
CHORDS = r"chords?|strum\w*|arpeggi\w*|harmoni[sz]\w*|polyphon\w*|both hands|left hand|harmonies"
REVERB = r"reverb|reverberant|reverberating|echo|echoes|echoing|echoey|spacious|hall"
# Words that make a statement hypothetical or a comparison.
SUPPOSED = r"could|can|may|might|would|suitable|suit|suits|something|perfect|probably|like"
VOICES = (
    r"voices?|voiced|vocals?|vocalists?|vocali[sz]\w*|sing|sings|singing|singers?|sung|choruses|chorus|chants?|"
    r"chanting|"
    r"acapella|a cappella|hum|humming|yodel\w*|verse|ballad|serenad\w*"
)
# Things that the corpus never contains.
FOREIGN = (
    r"male|female|man|men|woman|women|girls?|boys?|child|children|kids?|lyrics|rap\w*|speech|speak\w*|talk\w*|"
    r"said|says|"
    r"saying|shout\w*|scream\w*|yell\w*|narrat\w*|instruct\w*|tutorial|lesson|teach\w*|explain\w*|laugh\w*|"
    r"crowds?|audience|cheer(?:s|ing)|applau\w*|clap|claps|clapping|snap|snaps|snapping|stomp\w*|crying|cries|"
    r"whistl\w*|nois\w+|hiss\w*|static|crackl\w*|hum|buzz\w*|distort\w*|fuzz\w*|overdriv\w*|wah|flanger|phaser|"
    r"delay|effects?|sfx|sirens?|birds?|chirp\w*|animals?|dogs?|cats?|water|rain|waves?|ocean|nature|footsteps|"
    r"engines?|"
    r"cars?|clock|tick\w*|ring tone|ringtone|alarm|telephone|gun\w*|explosion\w*|barking|breath(?:ing|s)|squeak\w*|"
    r"click\w*|bang\w*|bubbl\w*|chatter\w*|conversation|dialogue|loop\w*|sampled?|samples|sampling|remix|dj|edm|"
    r"techno|house|trance|dubstep|disco|electro|electronic|electronica|hip[- ]?hop|trap|pop|rock|metal|punk|"
    r"grunge|indie|"
    r"jazz\w*|blues\w*|swing|soul|soulful|funk\w*|r&b|reggae|ska|dub|latin\w*|salsa|samba|bossa|mariachi|mexican|"
    r"flamenco|spanish|tango|cumbia|cajun|country|bluegrass|gospel|african|arab\w*|middle[- ]eastern|turkish|persian|"
    r"chinese|japanese|asian|oriental|hindustani|carnatic|raga|bollywood|new age|ambient|psychedelic|trippy|klezmer|"
    r"balkan|polka|christmas|jingle|marching band|big band|brass band|bowing|tremolo|pizzicato|staccato|trill\w*|"
    r"vibrato|glissando|slides?|sliding|bends?|bending|slap\w*|tapping|tun(?:ed|ing)|out of tune|practic\w*|beginner|"
    r"imitat\w*|mimic\w*|resembl\w*|similar|unison|duo|trio|instrument called|hear\b.*\binstructor|same instrument|"
    r"mono|vinyl|tape|radio|phone|microphone|amplifi\w*|reversed|backwards|panned|left side|right side|stereo|"
    r"dissonan\w*|"
    r"_+[- ]like|muted|laser|creak\w*|layer\w*|filtered|digital|two|three|four|multiple|several|various|"
    r"different parts|hundreds|group of|soldiers?|parade|tremulous|modern|"
    r"contemporary|atonal|discordant|off-key|chaotic"
)
# A text about one moment of a piece does not describe a whole clip.
CHANGES = (
    r"at (?:one|some|the|this) (?:beginning|end|start|point|same time)|in the (?:beginning|end)|first half|"
    r"second half|"
    r"then|later|after|afterwards|before|followed|follows|starts?|starting|started|begins?|beginning|intro|"
    r"outro|ends?|"
    r"ending|fades?|fading|suddenly|pauses?|paused|stops?|increas\w*|decreas\w*|builds?|changes?|changing|gradually|"
    r"occasional|occasionally|once|one note|single note|each bar|every now|enters?|joins?|joined|next|slows? down|"
    r"speeds? up|getting|louder|ritardando|accelerando|crescendo"
)
