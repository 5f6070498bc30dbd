"""Natural languages: their codes, names and scripts, and the rules for their sentences."""

import difflib
from collections.abc import Iterable, Sequence

import babel
import regex
from babel.core import get_global

from impossible.settings import UserError

_TAGS = get_global("likely_subtags")  # tr -> tr_Latn_TR
_NAMES = {code: name for code, name in babel.Locale("en").languages.items() if code != "und"}
# Scripts that no character has by itself in Unicode, and the scripts that they consist of.
_PARTS = {"Hans": ["Hani"], "Hant": ["Hani"], "Hanb": ["Hani", "Bopo"], "Kore": ["Hang", "Hani"]}
_PARTS |= {"Jpan": ["Hani", "Hira", "Kana"], "Latf": ["Latn"], "Latg": ["Latn"], "Jamo": ["Hang"]}
_WITHOUT_SPACES = {"Hans", "Hant", "Hani", "Jpan", "Thai", "Laoo", "Khmr", "Mymr", "Tibt"}
_WITHOUT_SPACES |= {"Bali", "Java", "Lana", "Tale", "Talu", "Yiii"}
# Each language with rules in sentencex 1.0.32, followed by the languages that share them. All other
# languages share those for English (its fallbacks.rs).
_RULES = (
    "am, ar acm aeb apc arq ary arz, bg, bn bpy, ca oc, da jut kl, de bar dsb frr gsw hrx hsb ksh "
    "lb nds pdc pdt pfl rm sli stq vmf, el pnt, en, es an arn ast ay ext gn guc lad qu qug, fi "
    "fit krl olo smn vot, fr atj avk bci bm dua fon frc frp gcf gcr hke ht kab kbp ln lua mg pcd "
    "ses sg shy ty wa wls wo, gu, hi anp awa mag mai sa, hy hyw, it aae co egl fur lij lld lmo "
    "nap pms rgn scn sdc sro vec, ja, kk kaa, kn tcy, ml, mr, my blk kjp ksw mnw, nl li srn vls, "
    "pa, pl csb szl, pt gl kea mwl tet vmw, ru ab alt av ba ce cv gld inh kjh koi krc kum kv lbe "
    "lez mdf mrj myv os rut sah sjd sty tt tyv udm xal, sk cs, ta, te, uk rue"
)
RULES = {code: group.split()[0] for group in _RULES.split(",") for code in group.split()}
# Bytes of a text for each byte of the same text in English (Arnett et al. 2024), for BabyBabelLM's
# languages except Serbian (its scripts differ), from byte_coefs_20240233.tsv of that paper's code.
_PREMIUMS = (
    "ace 1.241957 afr 1.037226 ara 1.465018 ban 1.269544 bug 1.227860 bul 1.812316 ces "
    "1.035849 cym 1.026557 dan 1.021066 deu 1.053648 ell 1.967262 eng 1.000000 est 0.967786 "
    "eus 1.059584 fas 1.597326 fra 1.173979 heb 1.355477 hrv 0.989673 hun 1.019955 ind "
    "1.178746 isl 1.154319 ita 1.066887 jav 1.146846 jpn 1.321974 kor 1.293311 mak 1.250697 "
    "min 0.949751 nld 1.051606 nor 1.125316 nso 1.115696 pol 1.077373 por 1.097878 ron "
    "1.115121 rus 1.822744 sot 1.166012 spa 1.083832 sun 1.096981 swe 1.020981 tur 1.044490 "
    "ukr 1.751370 xho 1.198782 yue 0.862461 zho 0.935966 zul 1.163840"
)
PREMIUMS = dict(zip(_PREMIUMS.split()[::2], map(float, _PREMIUMS.split()[1::2]), strict=True))
_BYTES_PER_WORD = 5.43  # of English, as BabyLM counts it
_LETTERS = 20_000  # letters that are looked at to find the script of a text
_FEW = 500  # letters: with fewer, the script counts as unknown


def code_of(name: str) -> str:
    """The shortest code (ISO 639-1, else -3) of a language that is named by any of its codes.

    Raises UserError, with similar codes, for an unknown code.
    """
    code = get_global("language_aliases").get(name, name).partition("_")[0]
    if code in _TAGS and code != "und":
        return code
    codes = {language.lower(): code for code, language in _NAMES.items()}
    near = difflib.get_close_matches(name.lower(), [*codes, *_NAMES], cutoff=0.5)
    near = dict.fromkeys(codes.get(word, word) for word in near) or ["en", "tr"]
    raise UserError(
        f"text_language = {name!r} is not a language code of ISO 639-1 or 639-3. Expected one such "
        f"as {', '.join(f'{code} ({name_of(code)})' for code in near)}."
    )


def name_of(code: str) -> str:
    """The English name of a language; its code if the name is not known."""
    return _NAMES.get(code, code)


def has_spaces(code: str) -> bool:
    """Whether the script of a language has spaces between words."""
    return _scripts(code)[0] not in _WITHOUT_SPACES


def bytes_per_word(code: str) -> float | None:
    """Bytes of text that count as one word, as in BabyBabelLM; None if it is not known."""
    premiums = {code_of(name): premium for name, premium in PREMIUMS.items()}
    return _BYTES_PER_WORD * premiums[code] if code in premiums else None


def about_rules(code: str) -> str:
    """A sentence on the language whose rules sentencex uses for `code`; empty if it is the same."""
    rules = RULES.get(code, "en")
    text = f"sentencex has no rules for {name_of(code)}: it uses those for {name_of(rules)}"
    return "" if rules == code else text


def is_in_script(lines: Sequence[str], code: str) -> bool:
    """Whether most letters are in a script of the language; False if there are too few letters.

    Raises UserError if most letters are of another script.
    """
    letters = "".join(regex.findall(r"\p{L}+", "\n".join(lines)))[:_LETTERS]
    if len(letters) < _FEW:
        return False
    if 2 * _count(letters, _scripts(code)) >= len(letters):
        return True
    languages = {key[4:]: tag for key, tag in _TAGS.items() if regex.fullmatch("und_....", key)}
    languages["Latn"] = "en_"
    found = max(languages.keys() - _PARTS, key=lambda script: _count(letters, [script]))
    names, likely = babel.Locale("en").scripts, languages[found].partition("_")[0]
    script = _scripts(code)[0]
    raise UserError(
        f"text_language = {code!r} is {name_of(code)}, but of the first {len(letters):,} letters "
        f"{_count(letters, [found]) / len(letters):.0%} are {names.get(found, found)}: "
        f"{lines[0][:40]!r}. Expected {names.get(script, script)}. Set the language of "
        f"the text, such as --text_language={likely} ({name_of(likely)})."
    )


def _scripts(code: str) -> list[str]:
    """The scripts in which a language is written, the usual one first."""
    keys = sorted(key for key in _TAGS if key == code or key.startswith(f"{code}_"))
    return [_TAGS[key].split("_")[1] for key in keys]


def _count(letters: str, scripts: Iterable[str]) -> int:
    """The number of letters that are in one of the scripts."""
    return len(regex.findall(f"[{_pattern(scripts)}]", letters))


def _pattern(scripts: Iterable[str]) -> str:
    """The part of a character class of `regex` that matches these scripts."""
    parts = (part for script in scripts for part in _PARTS.get(script, [script]))
    return "".join(rf"\p{{Script={part}}}" for part in parts)


OF_WORD = rf"[^\W{_pattern(_WITHOUT_SPACES)}]"  # a character of a word, in scripts with spaces
