"""Publishing: a series of exports as the revisions of one model repo on the Hub.

Each revision is a branch that starts at the first commit of the repo, so that it inherits no files,
and contains only the files of one export. Files that are already there (same hash) are skipped, so
the same command completes an interrupted upload.
"""

import functools
import json
import re
import time
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
from huggingface_hub import GitCommitInfo, HfApi, ModelCard
from huggingface_hub.errors import (
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils.sha import git_hash

from impossible import asking
from impossible.hub.card import NAME as CARD
from impossible.hub.export import WEIGHTS
from impossible.settings import UserError

_OF_THE_HUB = {".gitattributes"}  # every repo begins with it


@dataclass(frozen=True)
class Revision:
    """One export as a revision on the Hub."""

    branch: str
    folder: Path
    files: dict[str, str]  # name -> SHA-256, all files of the folder
    step: int
    val_loss: float  # nats per token
    source_sha256: str  # of the checkpoint file that it was made from

    @property
    def title(self) -> str:
        """The commit message, which also identifies the checkpoint."""
        return (
            f"Step {self.step}, validation loss {self.val_loss:.4f}, "
            f"checkpoint sha256 {self.source_sha256}"
        )

    def differences(self, listing: list[RepoFile]) -> list[str]:
        """The differences between a revision's files on the Hub and the export, as texts."""
        there = {file.path: file for file in listing if file.path not in _OF_THE_HUB}
        return [
            *(f"{name} is missing" for name in self.files.keys() - there.keys()),
            *(f"{name} is not part of the export" for name in there.keys() - self.files.keys()),
            *(
                f"{name} has other content"
                for name in there.keys() & self.files.keys()
                if not self._is_same(there[name])
            ),
        ]

    def has_same_weights(self, listing: list[RepoFile]) -> bool:
        """Whether the weights of a revision on the Hub are those of the export."""
        return any(file.path == WEIGHTS and self._is_same(file) for file in listing)

    def _is_same(self, file: RepoFile) -> bool:
        if file.lfs is not None:
            return file.lfs.sha256 == self.files[file.path]
        return file.blob_id == git_hash((self.folder / file.path).read_bytes())


def sign_in(repo: str) -> HfApi:
    """Sign in to the Hub with the token in HF_TOKEN or the one stored by `hf auth login`.

    Raises UserError if `repo` is not a valid name, or if the token is missing, is rejected by the
    Hub, or has no write permission for that name.
    """
    namespace, name = require_valid(repo)
    token = huggingface_hub.get_token()
    if token is None:
        raise UserError(
            "publishing needs a Hub token with write permission. Create one at "
            "https://huggingface.co/settings/tokens and type: hf auth login (or set HF_TOKEN)"
        )
    if not re.fullmatch("[!-~]+", token):
        raise UserError("the token contains invalid characters. Type: hf auth login")
    api = HfApi(token=token)
    try:
        user = asking.patiently("the Hub", api.whoami)
    except asking.ERRORS as error:
        raise UserError(asking.reason_of(error))
    if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise UserError(
            "the token has no write permission. Create one that has at "
            "https://huggingface.co/settings/tokens and type: hf auth login (or set HF_TOKEN)"
        )
    names = [user["name"], *(organisation["name"] for organisation in user.get("orgs", []))]
    if namespace.lower() not in map(str.lower, names):
        raise UserError(
            f"{repo} belongs to {namespace}, but the token belongs to {user['name']}, who may "
            f"write to: {', '.join(names)}. Type: --push_to_hub={user['name']}/{name}"
        )
    return api


def require_valid(repo: str) -> tuple[str, str]:
    """The namespace and the name of a repo. Raises UserError if the Hub has no such names."""
    try:
        huggingface_hub.utils.validate_repo_id(repo)
        namespace, name = repo.split("/")
    except (HFValidationError, ValueError):
        raise UserError(f"push_to_hub = {repo!r} is not the name of a repo. Expected: USER/NAME")
    return namespace, name


class Publication:
    """One repo and its intended content. Nothing is changed in a dry run."""

    def __init__(
        self, api: HfApi, repo: str, private: bool, overwrite: bool, dry_run: bool
    ) -> None:
        self._api = api
        self._repo = repo
        self._private = private
        self._overwrite = overwrite
        self._dry_run = dry_run

    def publish(self, revisions: list[Revision]) -> list[Revision]:
        """Upload these revisions one after the other. Returns those that were uploaded.

        All revisions are checked first: if one must not be replaced, nothing is changed. Raises
        UserError if publishing fails, with the finished and unfinished revisions and what to do.
        """
        found = self._plan(revisions)
        left = [revision for revision in revisions if found[revision.branch] != "there"]
        there = len(revisions) - len(left)
        print(f"{self._repo}: {there} of {len(revisions)} revisions are there already", flush=True)
        if self._dry_run:
            replaced = [revision for revision in left if found[revision.branch] == "other"]
            print(f"dry run: would upload: {_names(left)}")
            print(f"dry run: would replace existing files of: {_names(replaced)}")
            return []
        uploaded: list[Revision] = []
        try:
            for number, revision in enumerate(left, 1):
                start = time.perf_counter()
                asking.patiently(revision.branch, functools.partial(self._upload, revision))
                uploaded.append(revision)
                seconds = time.perf_counter() - start
                size = sum((revision.folder / name).stat().st_size for name in revision.files) / 1e6
                print(
                    f"{revision.branch} ({number} of {len(left)}) is uploaded and verified: "
                    f"{size:,.1f} MB, {seconds:.1f} s",
                    flush=True,
                )
        except (UserError, *asking.ERRORS) as error:
            goes_on = "The same command resumes from there." if asking.is_transient(error) else ""
            raise UserError(
                f"{asking.reason_of(error)} Finished in {self._repo}: "
                f"{_names([r for r in revisions if r not in left] + uploaded)}; not finished: "
                f"{_names(left[len(uploaded) :])}. {goes_on}".rstrip()
            )
        return uploaded

    def _plan(self, revisions: list[Revision]) -> dict[str, str]:
        """The state of each branch on the Hub: new (nothing), there (the export) or other files.

        Raises UserError if a branch must not be replaced.
        """
        try:
            exists = asking.patiently(self._repo, self._exists)
            found = {
                revision.branch: asking.patiently(
                    revision.branch, functools.partial(self._standing, revision)
                )
                if exists
                else "new"
                for revision in revisions
            }
            if set(found.values()) != {"there"}:
                asking.patiently("the card", functools.partial(_check_card, revisions[-1]))
            if not exists:
                asking.patiently(self._repo, self._make)
            return found
        except asking.ERRORS as error:
            raise UserError(f"{asking.reason_of(error)} No revision was changed.")

    def download(self, revision: Revision, folder: Path) -> None:
        """Fetch a revision's files into a folder. Raises UserError."""
        fetch = functools.partial(
            self._api.snapshot_download, self._repo, revision=revision.branch, local_dir=folder
        )
        try:
            asking.patiently(f"download of {revision.branch}", fetch)
        except asking.ERRORS as error:
            raise UserError(f"{asking.reason_of(error)} The same command resumes.")

    def _exists(self) -> bool:
        """Whether the repo exists. Raises UserError if it is public but should be private."""
        try:
            info = self._api.model_info(self._repo)
        except RepositoryNotFoundError:
            return False
        if self._private and not info.private:
            raise UserError(
                f"{self._repo} is public, but the settings say private = True. Make it private in "
                "its settings on the Hub, choose another name, or leave private out."
            )
        return True

    def _make(self) -> None:
        kind = "private" if self._private else "public"
        if self._dry_run:
            print(f"{self._repo} does not exist; it would be created as a {kind} repo")
        else:
            self._api.create_repo(self._repo, private=self._private, exist_ok=True)
            print(f"created the {kind} repo {self._repo}")

    def _standing(self, revision: Revision) -> str:
        """Like _plan, for one revision. Raises UserError if it must not be replaced."""
        listing = self._listing(revision)
        if listing is None:
            return "new"
        if not revision.differences(listing):
            return "there"
        self._replaceable(revision, listing)
        return "new" if _is_empty(listing) else "other"

    def _upload(self, revision: Revision) -> None:
        """Make one revision equal to the export. May be called again at any time."""
        listing = self._listing(revision)
        if listing is None:
            parent = self._first_commit
            self._api.create_branch(
                self._repo, branch=revision.branch, revision=parent, exist_ok=True
            )
        elif revision.differences(listing):
            # Asked again: it may have been changed since the plan.
            parent = self._replaceable(revision, listing).commit_id
        else:  # an upload whose answer was lost
            return
        # The parent makes an upload into a branch that has moved since fail, and so a second
        # commit after an answer that was lost.
        self._api.upload_folder(
            repo_id=self._repo,
            folder_path=revision.folder,
            revision=revision.branch,
            commit_message=revision.title,
            delete_patterns="*",
            parent_commit=parent,
        )
        if differences := revision.differences(self._listing(revision) or []):
            raise UserError(
                f"{revision.branch} does not hold what was uploaded: {'; '.join(differences)}."
            )

    def _listing(self, revision: Revision) -> list[RepoFile] | None:
        """The files of a revision on the Hub; None if there is no such branch."""
        try:
            tree = self._api.list_repo_tree(self._repo, revision=revision.branch, recursive=True)
            return [entry for entry in tree if isinstance(entry, RepoFile)]
        except RevisionNotFoundError:
            return None

    @functools.cached_property
    def _first_commit(self) -> str:
        return self._api.list_repo_commits(self._repo)[-1].commit_id

    def _replaceable(self, revision: Revision, listing: list[RepoFile]) -> GitCommitInfo:
        """The last commit of a branch whose files may be replaced.

        Files may be replaced if we committed them for the same checkpoint or the same weights, or
        if the branch is new. Otherwise raises UserError, unless the settings allow it.
        """
        commit = self._api.list_repo_commits(self._repo, revision=revision.branch)[0]
        is_new = revision.branch != "main" and commit.commit_id == self._first_commit
        if self._overwrite or is_new or _is_empty(listing):
            return commit
        source = re.search(r"checkpoint sha256 ([0-9a-f]{64})$", commit.title)
        if source is None:
            what = f"was changed by hand (last commit: {commit.title!r})"
        elif source[1] != revision.source_sha256 and not revision.has_same_weights(listing):
            what = f"holds another checkpoint ({commit.title!r}, here {revision.source_sha256})"
        else:
            return commit
        raise UserError(
            f"the branch {revision.branch} of {self._repo} {what}. It was not changed. Publish "
            "under another name, or replace its content with --overwrite."
        )


def _check_card(revision: Revision) -> None:
    """Raise UserError if the Hub rejects the metadata of a revision's card."""
    card = ModelCard((revision.folder / CARD).read_text(encoding="utf-8"))
    try:
        card.validate()
    except json.JSONDecodeError:
        raise
    except ValueError as error:
        raise UserError(
            f"the Hub does not take the metadata of {revision.folder / CARD}: "
            f"{asking.text_of(error)}. Is --model_license= one of the Hub's names for licences "
            "(https://huggingface.co/docs/hub/repositories-licenses)?"
        )


def _is_empty(listing: list[RepoFile]) -> bool:
    """Whether a branch holds nothing but what the Hub itself put there."""
    return all(file.path in _OF_THE_HUB for file in listing)


def _names(revisions: list[Revision]) -> str:
    return ", ".join(revision.branch for revision in revisions) or "nothing"
