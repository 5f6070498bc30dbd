"""Collections on a Hub on 127.0.0.1, over a real connection."""

from collections.abc import Iterator

import pytest
from hub import Fault, Hub, serve
from huggingface_hub import HfApi

from impossible.hub import publish
from impossible.settings import UserError


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A Hub with two models of ada's."""
    with serve(Hub()) as served:
        for name in ("ada/one", "ada/two"):
            served.add_model(name)
        yield served


def api(hub: Hub) -> HfApi:
    return HfApi(endpoint=hub.url, token="hf_good")  # ada's


@pytest.mark.parametrize("fault", ["none", "503", "reset", "lost answer"])
def test_a_collection_lists_all_repos_once_and_grows(fault: str, hub: Hub) -> None:
    if fault != "none":
        hub.fault = Fault(2, fault)
    address = publish.gather(api(hub), "ada", "Mine", ["ada/one"], private=True)
    publish.gather(api(hub), "ada", "Mine", ["ada/one", "ada/two"], private=True)
    ((slug, found),) = hub.collections.items()
    assert address == f"{hub.url}/collections/{slug}"
    assert found.items == ["ada/one", "ada/two"]
    assert (found.title, found.private) == ("Mine", True)


def test_what_the_hub_refuses_is_told(hub: Hub) -> None:
    with pytest.raises(UserError, match="does not let this token write"):
        publish.gather(api(hub), "bob", "Mine", ["ada/one"], private=False)
    with pytest.raises(UserError, match=r"not complete: .* The repos are published"):
        publish.gather(api(hub), "ada", "Mine", ["ada/gone"], private=False)
