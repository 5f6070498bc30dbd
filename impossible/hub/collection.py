"""Collections of the Hub: several repos on one page."""

import functools

from huggingface_hub import HfApi

from impossible import asking
from impossible.errors import UserError

_LONGEST = 59  # characters of a title, says the Hub


def gather(api: HfApi, namespace: str, title: str, repos: list[str], private: bool) -> str:
    """Create a collection, unless there is one of that title, and add repos. Returns its address.

    api: as publish.sign_in returns it. Raises UserError if the Hub refuses, or does not list all
    repos afterwards.
    """
    title = title[:_LONGEST]
    try:
        slug = asking.patiently(
            "the collection",
            lambda: (
                api.create_collection(
                    title, namespace=namespace, private=private, exists_ok=True
                ).slug
            ),
        )
        there = _models(api, slug)
        for repo in repos:
            if repo not in there:
                add = functools.partial(api.add_collection_item, slug, repo, "model")
                asking.patiently(repo, functools.partial(add, exists_ok=True))
        missing = [repo for repo in repos if repo not in _models(api, slug)]
    except asking.ERRORS as error:
        raise UserError(
            f"the collection {namespace}/{title} is not complete: {asking.reason_of(error)} The "
            "repos are published. Run the same command again for the collection."
        )
    if missing:
        raise UserError(
            f"the collection {slug} does not list {', '.join(missing)}. Run the same command again."
        )
    return f"{api.endpoint}/collections/{slug}"


def _models(api: HfApi, slug: str) -> list[str]:
    found = asking.patiently("the collection", lambda: api.get_collection(slug))
    return [item.item_id for item in found.items if item.item_type == "model"]
