"""Which members of a tar make a sample: WebDataset's rule, and the names that do not fit it.

WebDataset's rule: a sample's key is the path up to the first dot of the file name, all that follows is the suffix, and
the members of a sample are neighbours. It takes `photo.2.jpg` for a member of sample `photo`, and a key that comes
again for another sample. Whoever packed the tar meant something else: such samples are refused, not guessed.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from webdataset.tariterators import base_plus_ext

from clt_lightning.data.tars.suffixes import IMAGE_SUFFIXES, WANTED

_IMAGES = frozenset(IMAGE_SUFFIXES)
_HIDDEN = frozenset(("__MACOSX", "@eaDir", "Thumbs.db", "desktop.ini"))
_META = re.compile(r"__[^/]*__($|/)")

_RULES = {
    "twice": (
        "it has two members {what!r}",
        "a sample has one member of each suffix, and upper and lower case are the same. Pack the tar again with each "
        "file once (`tar -r` and `tar -u` leave the old one in)",
    ),
    "apart": (
        "its members are not neighbours, other samples come in between",
        "the members of a sample follow one another, and a key is there once. Pack the tar in the order of names "
        "(tar --sort=name), and give different samples different keys",
    ),
    "dotted": (
        "its member with the suffix {what!r} looks like a sample of its own",
        "the key ends at the first dot of the file name. Rename the files without that dot (photo_2.jpg in place of "
        "photo.2.jpg) and pack the tar again",
    ),
    "images": (
        "it has two images, {what!r}",
        "a sample has one image. Give the files names that differ before the first dot and pack the tar again",
    ),
    "link": (
        "its member {what!r} is a link or another special file, without content",
        "members are plain files. Pack the tar again with tar --dereference --hard-dereference",
    ),
}


@dataclass(frozen=True)
class Fault:
    """A sample that does not fit the rule.

    Attributes:
        position: its number in the tar.
        key: its key.
        rule: `twice` | `apart` | `dotted` | `images` | `link`.
        what: the suffix that it is about.
    """

    position: int
    key: str
    rule: str
    what: str = ""

    @property
    def reason(self) -> str:
        """What is wrong, which rule it is against, and what to do."""
        found, rule = _RULES[self.rule]
        return f"{found.format(what=self.what)}. WebDataset's rule: {rule}"


@dataclass(frozen=True)
class Extra:
    """A suffix of several parts, as `seg.png`, and the samples of a tar that have it.

    Attributes:
        suffix: the suffix.
        key: the first sample's.
        positions: the samples' numbers in the tar.
    """

    suffix: str
    key: str
    positions: tuple[int, ...]


def is_regular(having: int, samples: int) -> bool:
    """Whether a suffix of several parts is one: more than half of a split's samples have it.

    Else its dot is part of a file's name: `beach.jpg` of `holiday.beach.jpg` occurs once, `seg.png` everywhere.
    """
    return having > 1 and 2 * having > samples


def split_name(member: str) -> tuple[str | None, str]:
    """Key and suffix: `a/b.seg.png` is sample `a/b`, suffix `seg.png`; (None, "") for members that are no sample.

    No samples are names without a dot, WebDataset's own `__…__`, and what file managers leave behind: names that begin
    with a dot, in any folder, `__MACOSX`, `Thumbs.db` and the like.
    """
    while member.startswith("./"):
        member = member[2:]
    if not member.isascii():  # a name that is no UTF-8 holds halves of characters, which nobody can print
        member = member.encode("utf-8", "backslashreplace").decode("utf-8")
    folder, slash, file = member.rpartition("/")
    key, suffix = base_plus_ext(file)
    if key is None or file in _HIDDEN:
        return None, ""
    if slash and _hidden(folder):
        return None, ""
    if member.startswith("__") and _META.match(member):
        return None, ""
    return folder + slash + key, suffix.lower()


def _hidden(folder: str) -> bool:
    if "." not in folder and "_" not in folder and "@" not in folder:
        return False
    return any(part in _HIDDEN or (part.startswith(".") and part.strip(".")) for part in folder.split("/"))


class Grouping:
    """Puts the members of one tar together, in the order in which they come.

    Attributes:
        samples: samples so far, the one under way included.
        key: the key of the one under way; None before the first.
        faults: those found so far, by position.
    """

    def __init__(self) -> None:
        self.samples = 0
        self.key: str | None = None
        self.faults: dict[int, Fault] = {}
        self._positions: dict[str, int] = {}
        self._members: list[str] = []
        self._link = ""
        self._kinds: Counter[tuple[str, ...]] = Counter()  # samples have few: png and cls, say
        self._verdicts: dict[tuple[str, ...], tuple[str, str, tuple[str, ...]]] = {}
        self._extras: defaultdict[str, tuple[list[str], list[int]]] = defaultdict(lambda: ([], []))

    def add(self, key: str, suffix: str, *, link: bool = False) -> bool:
        """Takes the next member; True where it begins a sample."""
        begins = key != self.key
        if begins:
            self.end()
            self.key = key
            self.samples += 1
        self._members.append(suffix)
        if link:
            self._link = self._link or suffix
        return begins

    def end(self) -> Fault | None:
        """Judges the sample under way, once all its members are known."""
        if not self._members:
            return None
        assert self.key is not None
        position, members = self.samples - 1, tuple(self._members)
        self._kinds[members] += 1
        verdict = self._verdicts.get(members)
        if verdict is None:
            verdict = self._verdicts[members] = judge(members)
        rule, what, extras = verdict
        for extra in extras:
            keys, places = self._extras[extra]
            if not keys:
                keys.append(self.key)
            places.append(position)
        first = self._positions.setdefault(self.key, position)
        if self._link:
            rule, what = "link", self._link
        elif first != position:
            rule, what = "apart", ""
            self.faults.setdefault(first, Fault(first, self.key, rule))
        if rule:
            self.faults[position] = Fault(position, self.key, rule, what)
        self._members, self._link = [], ""
        return self.faults.get(position)

    def drop(self) -> None:
        """Forgets the sample under way."""
        if self._members:
            self._members, self._link, self.key = [], "", None
            self.samples -= 1

    def finish(self) -> tuple[Fault, ...]:
        """All faults, in the order of positions, once the whole tar has been seen."""
        self.end()
        return tuple(self.faults[position] for position in sorted(self.faults))

    def extras(self) -> tuple[Extra, ...]:
        """The suffixes of several parts that are to be compared with the other samples'."""
        return tuple(Extra(suffix, keys[0], tuple(places)) for suffix, (keys, places) in sorted(self._extras.items()))

    def suffixes(self) -> Counter[str]:
        """How many samples have each suffix; the one under way does not count yet."""
        found: Counter[str] = Counter()
        for members, count in self._kinds.items():
            for suffix in set(members):
                found[suffix] += count
        return found


def is_extra(suffix: str) -> bool:
    """Whether it is a suffix of several parts that ends like one that we read: `seg.png`, `2.jpg`."""
    return "." in suffix and suffix.rpartition(".")[2] in WANTED


def judge(suffixes: Sequence[str]) -> tuple[str, str, tuple[str, ...]]:
    """Looks at one sample's members.

    Args:
        suffixes: of its members, in lower case.

    Returns:
        The rule that they are against ("" for none), the suffix that it is about, and the suffixes of several parts
        that are to be compared with the other samples'.
    """
    counts = Counter(suffixes)
    repeated = next((s for s in suffixes if counts[s] > 1), None)
    if repeated is not None:
        return "twice", repeated, ()
    images = [s for s in suffixes if s in _IMAGES]
    if len(images) > 1:
        return "images", " and ".join(images), ()
    extras = tuple(s for s in suffixes if is_extra(s))
    inner: defaultdict[str, set[str]] = defaultdict(set)
    for extra in extras:
        middle, _, last = extra.rpartition(".")
        inner[middle].add("image" if last in _IMAGES else last)
    for extra in extras:
        middle, _, last = extra.rpartition(".")
        number = any(not any(c.isalpha() for c in part) for part in middle.split("."))
        alone = last in _IMAGES and not images
        labelled = "image" in inner[middle] and len(inner[middle]) > 1
        if number or alone or labelled:
            return "dotted", extra, ()
    return "", "", extras
