"""Prompts made ready for the text encoder.

MAGI-1 was trained on captions that had gone through DeepFloyd IF's cleaner: lower case, plain
quotes and dashes, single spaces. That cleaner was written for captions crawled from the web. It
also erases whole scripts (Chinese, Japanese kanji), file names, numbers, handles and shipping
notes. :func:`clean` keeps what somebody wrote and brings it into the same form; on ordinary
sentences both give the same text. :func:`clean_published` is the published cleaner itself.
"""

import re
import unicodedata
import warnings
from typing import Any

from magi_world.errors import missing_package

_QUOTES = str.maketrans({**dict.fromkeys("“”„‟«»¨‶″", '"'), **dict.fromkeys("‘’‚‛`´‵′", "'")})
_DASHES = re.compile(r"[‐‑‒–—―−⸺⸻﹘﹣－]+")  # noqa: RUF001
# zero width space, word joiner, byte order mark, soft hyphen; joiners of scripts and emoji stay
_INVISIBLE = re.compile("[\u200b\u2060\ufeff\u00ad]")


def clean(prompt: str) -> str:
    """Bring a prompt into the form of the training captions; nothing of its content is lost.

    Lower case, plain quotes and dashes, no control or invisible characters, single spaces, no
    quotes around the whole. All scripts stay.
    """
    text = unicodedata.normalize("NFC", prompt)
    text = text.translate(_QUOTES).lower()
    text = _INVISIBLE.sub("", _DASHES.sub("-", text))
    text = "".join(" " if _is_blank(character) else character for character in text)
    text = " ".join(text.split())
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" and text.count(text[0]) == 2:
        text = text[1:-1].strip()
    return text


def _is_blank(character: str) -> bool:
    """Controls, surrogates and unassigned code points, and separators of every kind.

    Other format characters stay: joiners carry meaning in Persian, Hindi and emoji.
    """
    return unicodedata.category(character) in ("Cc", "Cs", "Cn", "Zs", "Zl", "Zp")


def clean_published(prompt: str) -> str:
    """Clean a prompt as the published code does: DeepFloyd IF's cleaner, twice.

    The result may be empty, for example for a Chinese prompt.

    Raises:
        MissingPackage: diffusers, ftfy or beautifulsoup4 is absent.
    """
    for package in ("diffusers", "transformers", "ftfy", "bs4"):
        try:
            __import__(package)
        except ImportError as error:
            name = "beautifulsoup4" if package == "bs4" else package
            raise missing_package(name, "magi1", "the published prompt cleaner") from error
    from diffusers.pipelines.deepfloyd_if.pipeline_if import IFPipeline

    cleaner: Any = IFPipeline
    with warnings.catch_warnings():
        # beautifulsoup guesses that a short prompt may be a file name or an address
        warnings.filterwarnings("ignore", module="bs4")
        warnings.filterwarnings("ignore", message=".*looks more like a")
        for _ in range(2):
            # the method reads one attribute of its class and nothing of an instance
            prompt = cleaner._clean_caption(cleaner, prompt)
    return prompt
