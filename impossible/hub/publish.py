"""Publishing: a series of exports as the revisions of one model repo on the Hub.

Each revision is a branch that starts at the first commit of the repo, so that it inherits no files.
It gets one commit of the files whose hash differs, and then all hashes are compared. So the same
command completes an interrupted upload.
"""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TypeVar

import huggingface_hub
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils.sha import git_hash

from impossible import asking
from impossible.hub.card import NAME as CARD
from impossible.hub.export import WEIGHTS
from impossible.settings import UserError

_T = TypeVar("_T")
_OF_THE_HUB = ".gitattributes"  # the Hub adds it to every new repo
_ERRORS = {
    401: "the Hub does not accept the token ({}). Type: hf auth login (a token in HF_TOKEN takes "
    "precedence).",
    403: "the Hub does not let this token write there ({}). The token may lack write permission "
    "(https://huggingface.co/settings/tokens), or the account may be out of storage.",
}


def ask(what: str, call: Callable[[], _T]) -> _T:
    """The result of `asking.patiently`. Raises UserError, or an OSError of the local disk."""
    try:
        return asking.patiently(what, call)
    except asking.ERRORS as error:
        if asking.is_of_disk(error):
            raise
        text = _ERRORS.get(asking.status_of(error), "the Hub could not be used: {}.")
        resumes = " Run the same command again to resume." * asking.is_transient(error)
        raise UserError(text.format(asking.text_of(error)) + resumes)


def sign_in(repo: str) -> HfApi:
    """A client of the Hub, signed in with the token in HF_TOKEN or that of `hf auth login`.

    Raises UserError if `repo` is not a valid name, or if the token is missing, is rejected by the
    Hub, or has no write permission for that name.
    """
    namespace, name = require_valid(repo)
    bad_token = "publishing needs a Hub token with write permission, and {}. Create one at "
    bad_token += "https://huggingface.co/settings/tokens and type: hf auth login (or set HF_TOKEN)"
    token = huggingface_hub.get_token()
    if token is None:
        raise UserError(bad_token.format("there is none"))
    if not re.fullmatch("[!-~]+", token):
        raise UserError(bad_token.format("this one contains invalid characters"))
    api = HfApi(token=token)
    user = ask("the Hub", api.whoami)
    if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise UserError(bad_token.format("this one has no write permission"))
    names = [user["name"], *(organisation["name"] for organisation in user.get("orgs", []))]
    if namespace.lower() not in map(str.lower, names):
        raise UserError(
            f"{repo} belongs to {namespace}, but the token belongs to {user['name']}, who may "
            f"write to: {', '.join(names)}. Type: --push_to_hub={user['name']}/{name}"
        )
    return api


def require_valid(repo: str) -> tuple[str, str]:
    """The namespace and the name of a repo. Raises UserError unless `repo` is a valid USER/NAME."""
    try:
        huggingface_hub.utils.validate_repo_id(repo)
        namespace, name = repo.split("/")
    except ValueError:
        raise UserError(f"push_to_hub = {repo!r} is not the name of a repo. Expected: USER/NAME")
    return namespace, name


@dataclass(frozen=True)
class Revision:
    """One export as a revision on the Hub."""

    branch: str
    title: str  # of its commit; ends in "checkpoint sha256 " and the hash of its source
    files: dict[str, Path]  # name on the Hub -> local file
    sha256: dict[str, str]  # of the same files

    @property
    def size(self) -> int:
        """The size of all files, in bytes."""
        return sum(path.stat().st_size for path in self.files.values())

    def differing(self, listing: list[RepoFile]) -> set[str]:
        """The names of files that the Hub lacks, has with other content, or should not have."""
        on_hub = {file.path: file for file in listing}
        names = on_hub.keys() & self.files.keys()
        same = {name for name in names if self._is_same(on_hub[name])}
        return (on_hub.keys() | self.files.keys()) - same

    def _is_same(self, file: RepoFile) -> bool:
        if file.lfs is not None:
            return file.lfs.sha256 == self.sha256[file.path]
        return file.blob_id == git_hash(self.files[file.path].read_bytes())


@dataclass(frozen=True)
class Repository:
    """A model repo on the Hub that may not exist yet. Its methods raise UserError."""

    api: HfApi
    name: str
    private: bool  # create it as a private repo
    overwrite: bool  # replace branches that were changed by hand or hold another run

    def publish(self, revisions: list[Revision], dry_run: bool) -> None:
        """Upload the revisions that differ from those on the Hub, one after the other.

        If one of them must not be replaced, nothing is uploaded. dry_run: only print what would be
        uploaded.
        """
        exists = ask(self.name, self._exists)
        pending = [r for r in revisions if not ask(r.branch, partial(self._is_complete, r))]
        names = [revision.branch for revision in pending]
        done = [revision.branch for revision in revisions if revision not in pending]
        print(f"{self.name}: {len(done)} of {len(revisions)} revisions are there already")
        if pending:
            ask("the card", partial(_check_card, revisions[-1].files[CARD]))
        kind = "private" if self.private else "public"
        if dry_run:
            note = "" if exists else f" (a new {kind} repo)"
            print(f"dry run: would upload to {self.name}{note}: {', '.join(names) or 'nothing'}")
            return
        if not exists:
            create = partial(self.api.create_repo, self.name, private=self.private, exist_ok=True)
            ask(self.name, create)
            print(f"created the {kind} repo {self.name}", flush=True)
        for number, revision in enumerate(pending):
            try:
                start = time.perf_counter()
                ask(revision.branch, partial(self._upload, revision))
            except UserError as error:
                raise UserError(
                    f"{error} Finished in {self.name}: {', '.join(done) or 'nothing'}; not "
                    f"finished: {', '.join(names[number:])}."
                )
            done.append(revision.branch)
            print(
                f"{revision.branch} ({number + 1} of {len(pending)}) is uploaded and verified: "
                f"{revision.size / 1e6:,.1f} MB, {time.perf_counter() - start:.1f} s",
                flush=True,
            )

    def _exists(self) -> bool:
        """Whether the repo exists. Raises UserError if it is public but should be private."""
        try:
            info = self.api.model_info(self.name)
        except RepositoryNotFoundError:
            return False
        if self.private and not info.private:
            raise UserError(
                f"{self.name} is public, but the settings say private = True. Make it private in "
                "its settings on the Hub, choose another name, or leave private out."
            )
        return True

    def _is_complete(self, revision: Revision) -> bool:
        """Whether the Hub has a revision. Raises UserError if it must not be replaced."""
        listing = self._listing(revision)
        is_complete = not revision.differing(listing)
        if listing and not is_complete:
            self._require_replaceable(revision, listing)
        return is_complete

    def _upload(self, revision: Revision) -> None:
        """Make one branch equal to a revision. May be called again at any time."""
        listing = self._listing(revision)
        names = revision.differing(listing)
        if not names:  # an upload whose answer was lost
            return
        if not listing:
            start = {"branch": revision.branch, "revision": self._first_commit}
            self.api.create_branch(self.name, **start, exist_ok=True)
        parent = self._require_replaceable(revision, listing)  # it may have been changed since
        self.api.create_commit(
            self.name,
            [
                CommitOperationAdd(name, revision.files[name])
                if name in revision.files
                else CommitOperationDelete(name)
                for name in sorted(names)
            ],
            commit_message=revision.title,
            revision=revision.branch,
            # With a parent, a commit fails if the branch has moved, even if only by an earlier
            # attempt whose answer was lost.
            parent_commit=parent,
        )
        if names := revision.differing(self._listing(revision)):
            raise UserError(
                f"{revision.branch} differs from the local files after the upload: "
                f"{', '.join(sorted(names))}. Run the same command again."
            )

    def _listing(self, revision: Revision) -> list[RepoFile]:
        """The files of a branch, without the Hub's own; empty if there is no such branch."""
        try:
            tree = self.api.list_repo_tree(self.name, revision=revision.branch, recursive=True)
            return [f for f in tree if isinstance(f, RepoFile) and f.path != _OF_THE_HUB]
        except (RepositoryNotFoundError, RevisionNotFoundError):
            return []

    @cached_property
    def _first_commit(self) -> str:
        return self.api.list_repo_commits(self.name)[-1].commit_id

    def _require_replaceable(self, revision: Revision, listing: list[RepoFile]) -> str:
        """The last commit of a branch. Raises UserError if its files must not be replaced.

        Files may be replaced if we committed them for the same checkpoint or the same weights, if
        the branch is new or empty, or if the settings allow it.
        """
        last = self.api.list_repo_commits(self.name, revision=revision.branch)[0]
        is_new = revision.branch != "main" and last.commit_id == self._first_commit
        if self.overwrite or is_new or not listing:
            return last.commit_id
        source = re.search(r"checkpoint sha256 [0-9a-f]{64}$", last.title)
        if source is None:
            what = f"was changed by hand (last commit: {last.title!r})"
        elif source[0] not in revision.title and WEIGHTS in revision.differing(listing):
            what = f"holds another checkpoint ({last.title!r}, here {revision.title!r})"
        else:
            return last.commit_id
        raise UserError(
            f"the branch {revision.branch} of {self.name} {what}. It was not changed. Publish "
            "under another name, or replace its content with --overwrite."
        )


def _check_card(path: Path) -> None:
    """Raise UserError if the Hub rejects the metadata of a card."""
    try:
        ModelCard(path.read_text(encoding="utf-8")).validate()
    except ValueError as error:
        raise UserError(
            f"the Hub rejects the metadata of {path}: {asking.text_of(error)}. Is --model_license= "
            "one of its names for licences (https://huggingface.co/docs/hub/repositories-licenses)?"
        )


def gather(api: HfApi, namespace: str, title: str, repos: list[str], private: bool) -> str:
    """Add repos to the collection with this title, created if need be. Returns its address.

    Raises UserError if the Hub refuses, or if the collection is public despite `private`.
    """
    create = partial(api.create_collection, title, namespace=namespace, private=private)
    try:
        collection = ask("the collection", partial(create, exists_ok=True))
        for repo in repos:
            add = partial(api.add_collection_item, collection.slug, repo, "model", exists_ok=True)
            ask(repo, add)
    except UserError as error:
        raise UserError(
            f"the collection {namespace}/{title} is not complete: {error} The repos are "
            "published. Run the same command again for the collection."
        )
    if private and not collection.private:
        raise UserError(
            f"the collection {collection.slug} is public, but private = True. Make it private on "
            "the Hub, or leave --private out. (The repos in it are private.)"
        )
    return f"{api.endpoint}/collections/{collection.slug}"
