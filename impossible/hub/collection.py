"""Collections of the Hub: several repos on one page."""

import functools

from huggingface_hub import HfApi

from impossible import asking
from impossible.settings import UserError


def gather(api: HfApi, namespace: str, title: str, repos: list[str], private: bool) -> str:
    """Create a collection, unless there is one of that title, and add repos. Returns its address.

    api: as publish.sign_in returns it. Raises UserError if the Hub refuses, or does not list all
    repos afterwards.
    """
    try:
        made = asking.patiently(
            "the collection",
            lambda: api.create_collection(
                title, namespace=namespace, private=private, exists_ok=True
            ),
        )
        there = _models(api, made.slug)
        for repo in repos:
            if repo.lower() not in there:
                add = functools.partial(api.add_collection_item, made.slug, repo, "model")
                asking.patiently(repo, functools.partial(add, exists_ok=True))
        missing = sorted({repo.lower() for repo in repos} - _models(api, made.slug))
    except asking.ERRORS as error:
        raise UserError(
            f"the collection {namespace}/{title} is not complete: {asking.reason_of(error)} The "
            "repos are published. Run the same command again for the collection."
        )
    if private and not made.private:
        raise UserError(
            f"the collection {made.slug} is public, but private = True. Make it private on the "
            "Hub, or leave --private out. (The repos in it are private.)"
        )
    if missing:
        raise UserError(
            f"the collection {made.slug} does not list {', '.join(missing)}. Run the same command "
            "again."
        )
    return f"{api.endpoint}/collections/{made.slug}"


def _models(api: HfApi, slug: str) -> set[str]:
    """The models of a collection, in lower case, as the Hub does not tell names apart by case."""
    found = asking.patiently("the collection", lambda: api.get_collection(slug))
    return {item.item_id.lower() for item in found.items if item.item_type == "model"}
