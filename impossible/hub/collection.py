"""Collections of the Hub: several repos on one page."""

from functools import partial

from huggingface_hub import HfApi

from impossible.hub.publish import ask
from impossible.settings import UserError


def gather(api: HfApi, namespace: str, title: str, repos: list[str], private: bool) -> str:
    """Create a collection, unless there is one of that title, and add repos. Returns its address.

    api: as publish.sign_in returns it. Raises UserError if the Hub refuses.
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
