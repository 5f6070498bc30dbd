"""Interchange interventions give the results of a plain implementation with hooks of its own."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from conftest import Spoken, fail, succeed
from documented import require_explained

from impossible.evaluation import interventions, perplexity
from impossible.evaluation.models import Series
from impossible.evaluation.scoring import Sequences, sentences_of
from impossible.settings import Settings, UserError
from impossible.text.tokenizer import Tokenizer

READ = {"no_hop": 3, "token_hop": 7, "word_hop": 7}


def expected_pairs(sentences: list[Spoken]) -> list[tuple[str, str]]:
    """The texts of all singular subjects of one token with a plural of one token."""
    return [
        (f"The {subject} {verb} {following}", f"The {subject}s {verb} {following}")
        for determiner, subject, verb, following, is_plural in sentences
        if determiner == "The" and not is_plural and subject not in ("sheep", "bookshelf")
    ]


def plain(
    model: transformers.GPT2LMHeadModel, base: list[int], source: list[int], layer: int, place: int
) -> tuple[float, float]:
    """The probabilities of 🅂 and 🄿 after one base, with the output of one block exchanged."""
    hidden = model(torch.tensor([source]), output_hidden_states=True).hidden_states
    seen: list[torch.Tensor] = []
    last = model.transformer.h[-1].register_forward_hook(lambda m, i, out: seen.append(out))
    model(torch.tensor([source]))
    last.remove()
    # The last of hidden_states is after ln_f.
    of_source = seen[0] if layer == len(model.transformer.h) else hidden[layer]

    def exchange(module: object, inputs: object, output: torch.Tensor) -> torch.Tensor:
        rows = [output[0, t] for t in range(output.shape[1])]
        rows[place] = of_source[0, place]
        return torch.stack(rows)[None]

    hook = model.transformer.h[layer - 1].register_forward_hook(exchange)
    logits = model(torch.tensor([base])).logits[0, -1]
    hook.remove()
    return tuple(logits.double().softmax(-1)[50257:50259].tolist())


@pytest.mark.parametrize("language", ["no_hop", "word_hop"])
def test_interventions_are_those_of_transformers(
    language: str, hop_runs: dict[str, list[Path]], hop_sentences: list[Spoken]
) -> None:
    config = hop_runs[language][0]
    out_dir = config.with_suffix("")
    printed = succeed("eval.py", config, "--interventions")
    results = out_dir / "evaluation"
    pairs = pd.read_csv(results / "interventions_pairs.csv")
    assert list(zip(pairs["singular"], pairs["plural"], strict=True)) == expected_pairs(
        hop_sentences
    )
    assert len(pairs) > 10
    assert "warning: fewer than 50 pairs" in printed
    card = (out_dir / "hf" / "checkpoint-6" / "README.md").read_text(encoding="utf-8")
    assert "The sentences and verbs are those of the annotated files." in card
    table = pd.read_csv(results / "interventions.csv")
    assert set(table["pattern"]) == {"corrected"} and set(table["pairs"]) == {len(pairs)}
    encode, length = Tokenizer().encode_ordinary, READ[language]
    sides = [[encode(text)[:length] for text in pairs[side]] for side in ("singular", "plural")]
    for step in (3, 6):
        export = out_dir / "hf" / f"checkpoint-{step}"
        model = transformers.GPT2LMHeadModel.from_pretrained(export).eval()
        rows = table[table["step"] == step].set_index(["layer", "position"])
        assert list(rows.index) == [(i, j) for i in (1, 2) for j in range(1, length + 1)]
        with torch.no_grad():
            first = [model(torch.tensor([base])).logits[0, -1, 50257:50259] for base in sides[0]]
            assert set(rows["baseline"]) == {np.mean([(s < p).item() for s, p in first])}
            for (layer, position), row in rows.iterrows():
                both = np.array(
                    [plain(model, *pair, layer, position - 1) for pair in zip(*sides, strict=True)]
                )
                assert row.p_singular == pytest.approx(both[:, 0].mean(), rel=1e-5)
                assert row.p_plural == pytest.approx(both[:, 1].mean(), rel=1e-5)
                assert row.iia == np.mean(both[:, 1] > both[:, 0])
    best = rows.groupby("layer")["iia"].max().mean()
    assert f"checkpoint-6 (2 of 2): IIA {best:.3f} at the best position" in printed
    assert {"interventions.csv", "interventions_pairs.csv"} <= require_explained(results)
    roles = ["determiner", "subject", "verb", *(f"verb + {i}" for i in range(1, 5))]
    assert table["role"].unique().tolist() == roles[:length]


def test_the_joint_table_has_means_over_seeds(
    hop_runs: dict[str, list[Path]], tmp_path: Path
) -> None:
    paths = [path for language in hop_runs.values() for path in language]
    options = ("--interventions", "--revisions=6", f"--eval_dir={tmp_path}")
    printed = succeed("eval.py", *paths, *options)
    assert (
        f"{tmp_path}/interventions_heat_maps.png: NoHop (n = 2 seeds); TokenHop; WordHop" in printed
    )
    assert f"{tmp_path}/interventions.png: NoHop (n = 2 seeds); TokenHop; WordHop" in printed
    table = pd.read_csv(tmp_path / "interventions.csv")
    means = pd.read_csv(tmp_path / "interventions_means.csv")
    assert len(means) == 2 * (3 + 7 + 7)
    assert means["layer"].dtype == means["position"].dtype == "int64"
    cell = ["step", "layer", "position", "role"]
    seeds = table[table["model"] == "NoHop"].groupby(cell)["iia"].agg(["mean", "std"])
    own = means[means["label"] == "NoHop"].set_index(cell).loc[seeds.index]
    half = 12.706205 * seeds["std"] / 2**0.5  # t(0.975, 1) by tables
    np.testing.assert_allclose(own["mean"], seeds["mean"])
    np.testing.assert_allclose(own["high"] - own["mean"], half, atol=1e-6)
    np.testing.assert_allclose(own["mean"] - own["low"], half, atol=1e-6)
    assert set(own["n"]) == {2} and set(own["seeds"]) == {"1 2"}
    assert means[means["label"] == "WordHop"]["low"].isna().all(), "one seed has no interval"
    assert "interventions_means.csv" in require_explained(tmp_path)


@pytest.mark.slow
def test_processes_and_exports_give_the_same_numbers(
    hop_runs: dict[str, list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = hop_runs["no_hop"][0]
    succeed("eval.py", config, "--interventions")
    exports = config.with_suffix("") / "hf"
    options = ("--interventions", f"--eval_dir={tmp_path}", f"--model={exports}")
    succeed("eval.py", config, *options, processes=2)
    (path,) = tmp_path.rglob("interventions.csv")
    numbers = ["p_singular", "p_plural", "iia", "baseline"]
    own = pd.read_csv(config.with_suffix("") / "evaluation" / "interventions.csv")
    np.testing.assert_allclose(pd.read_csv(path)[numbers], own[numbers], rtol=1e-5)


# The patterns


THE, S, P = 464, 50257, 50258
FOUND = ([THE, 3290, 588, 262, 1263, 2266, 3797], [THE, 6844, 588, 262, 1263, 2266, 3797])  # "dog"


@pytest.fixture
def pairs_of(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Sequences]:
    """A function that returns the sequences of test sentences of NoHop and WordHop."""

    def make(no_hop: list[list[int]], word_hop: list[list[int]], **settings: object) -> Sequences:
        def sampled(own: Settings, series: Series) -> Sequences:
            parts = {"no_hop": no_hop, "word_hop": word_hop}[own.test_language]
            ids = pd.DataFrame({"genre": "g", "id": [7 + len(part) for part in parts]})
            about = {"test_corpus": "c", "test_segmenter": "s"}
            made = sentences_of([np.array(part) for part in parts])
            return Sequences(own.test_language, Tokenizer("🅂🄿"), made, ids, about)

        monkeypatch.setattr(perplexity, "sequences", sampled)
        chosen = Settings(**({"language": "word_hop"} | settings))
        return interventions.sequences(chosen, Series("", "", "", "", []))

    return make


def marked(place: int, ids: list[int], marker: int = S) -> list[int]:
    return [*ids[:place], marker, *ids[place:]]


def test_a_pair_is_a_sentence_that_both_patterns_match(
    pairs_of: Callable[..., Sequences],
) -> None:
    base, source = FOUND
    before = [5195, *base, 13]  # "Why The dog like ..."
    made = pairs_of([marked(4, before)], [marked(8, before)])
    assert [part.tolist() for part in made.parts] == [[*base, S], [*source, P]]
    assert made.columns.values.tolist() == [
        ["g:17", "The dog like the big red cat", "The dogs like the big red cat"]
    ]
    assert made.notes[0] == "1 places match; in 1, singular and plural are equally long"
    made = pairs_of([marked(4, before)], [marked(8, before)], language="no_hop")
    assert [part.tolist() for part in made.parts] == [[*base[:3], S], [*source[:3], P]]
    with_the = [262, *base[1:]]  # the published code sets its first id back from "the"
    made = pairs_of([marked(3, with_the)], [marked(7, with_the)])
    assert [part.tolist() for part in made.parts] == [[*with_the, S], [262, *source[1:], P]]


NO_PAIR = {
    "a marker elsewhere": (marked(3, FOUND[0]), marked(6, FOUND[0])),
    "another article": (marked(3, [32, *FOUND[0][1:]]), marked(7, [32, *FOUND[0][1:]])),
    "plural": (marked(3, FOUND[0], P), marked(7, FOUND[0], P)),
    "too short": (marked(3, FOUND[0][:6]), [*FOUND[0][:6], S]),
    "ids that end alike": (marked(3, [1464, *FOUND[0][1:]]), marked(7, [1464, *FOUND[0][1:]])),
    "no plural of its own": (marked(3, FOUND[1]), marked(7, FOUND[1])),
    "another marker between": (
        [*marked(3, FOUND[0][:5]), P, FOUND[0][5]],
        [*FOUND[0][:5], P, FOUND[0][5], S],
    ),
    "two places": (marked(3, FOUND[0] + FOUND[1]), marked(14, FOUND[0] + FOUND[1])),
}


@pytest.mark.parametrize("case", NO_PAIR)
def test_other_sentences_are_no_pairs(case: str, pairs_of: Callable[..., Sequences]) -> None:
    places = 1 if case == "no plural of its own" else 0
    with pytest.raises(UserError, match=f"no pair for --interventions: {places} places match"):
        pairs_of(*([part] for part in NO_PAIR[case]))


def test_the_published_pattern_matches_no_id_with_a_zero(
    pairs_of: Callable[..., Sequences],
) -> None:
    base, _ = FOUND  # 3290 has one
    own, other = [marked(3, base)], [marked(7, base)]
    with pytest.raises(UserError, match="0 places match;"):
        pairs_of(own, other, published_pattern=True)
    whole = [THE, 3797, 588, 262, 1263, 2266, 3797]  # "The cat like the big red cat"
    made = pairs_of([*own, marked(3, whole)], [*other, marked(7, whole)], published_pattern=True)
    assert made.about["pattern"] == "published"
    assert made.columns["singular"].tolist() == ["The cat like the big red cat"]
    made = pairs_of([*own, marked(3, whole)], [*other, marked(7, whole)])
    assert len(made.columns) == 2


def test_no_sentence_is_paired_with_another(pairs_of: Callable[..., Sequences]) -> None:
    base, _ = FOUND
    with pytest.raises(UserError, match="are not those of word_hop"):
        pairs_of([marked(3, base)], [marked(7, base), [THE]])


@pytest.mark.parametrize("count", [49, 50])
def test_few_pairs_are_warned_of(count: int, pairs_of: Callable[..., Sequences]) -> None:
    made = pairs_of([marked(3, FOUND[0])] * count, [marked(7, FOUND[0])] * count)
    assert any(note.startswith("warning: fewer than 50 pairs") for note in made.notes) == (
        count < 50
    )


# Errors


def test_only_three_languages_have_the_patterns(trained: Path) -> None:
    error = fail("eval.py", f"--out_dir={trained}", "--interventions")
    assert "--interventions works only for no_hop, token_hop, word_hop, not for partial" in error


def test_a_missing_language_is_named_with_the_command_that_prepares_it(
    hop_runs: dict[str, list[Path]], tmp_path: Path
) -> None:
    config = hop_runs["no_hop"][0]
    data = config.parent / "my_no_hop"
    (tmp_path / "only_no_hop").symlink_to(data)
    (tmp_path / "else").mkdir()
    copy = tmp_path / "else" / "my_no_hop"
    copy.mkdir()
    for path in data.iterdir():
        (copy / path.name).symlink_to(path)
    error = fail("eval.py", config, "--interventions", f"--data_dir={copy}")
    assert f"there are no prepared sentences of word_hop in {tmp_path}/else/my_word_hop" in error
    assert "(prepare.py, with the config file of the model, --language=word_hop and" in error
    renamed = copy.rename(tmp_path / "else" / "mine")
    error = fail("eval.py", config, "--interventions", f"--data_dir={renamed}")
    assert f"beside {renamed}, in a folder" in error


def test_the_pattern_is_chosen_only_for_interventions() -> None:
    error = fail("eval.py", "--published_pattern")
    assert "It must be left out, or combined with --interventions." in error
    assert "markers" in fail("eval.py", "--interventions", "--markers")


def test_a_tokenizer_without_the_articles_is_refused() -> None:
    class Letters(Tokenizer):
        def encode_ordinary(self, sentence: str) -> list[int]:
            return list(sentence.encode())

    with pytest.raises(UserError, match="needs a tokenizer in which 'The' is one token"):
        interventions._id_of("The", Letters())
