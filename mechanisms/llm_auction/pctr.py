"""pCTR: the click model that the platform learns from its users (LLM-Auction, arXiv 2512.10551).

    pctr = σ(MLP[P·e(query), P·e(profile), P·e(reply), P·e(ad), cosines of these,
                 user, ad, ads shown, place])

e is a frozen sentence encoder (MiniLM, 384), P a learned projection, user and ad are learned
embeddings, and the MLP has hidden layers of 128, 64 and 32. Trained by binary cross-entropy with
Adam. The cosines are ours: relevance moves clicks most, and a few thousand impressions, of which
one in twelve is clicked, do not teach a network the inner product. For the same reason P is narrow
and its output is dropped half of the time in training. (Some 1,600 impressions of the default
market, eight epochs, requests held out, mean of ten splits: correlation with the true probabilities
0.36 with a P of 16 and no cosines, 0.60 with cosines, 0.68 with a P of 4 too, 0.70 with dropout.)

IRPO fits the model to the replies of the Ad-LLM as it is by then. It goes on from the last state
(`start`); users and ads that are new get embeddings of their own. The embedding of whoever is
unknown is trained by hiding a share of those known.

Sums of floats depend on their order: the same seed gives the same bytes with the same number of
torch's threads. Texts are embedded one by one, so that what else is asked for makes no difference.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from mechanisms.checks import Parametric, non_negative, positive, whole
from mechanisms.errors import BadInput
from mechanisms.llm_auction.calibration import auc, calibration, correlation
from mechanisms.llm_auction.impressions import Impressions
from mechanisms.pool import Floats
from mechanisms.recording.design import Features, Request

HIDDEN = (128, 64, 32)
PROJECTED, IDENTITY = 4, 8  # dimensions of a projected text, and of a user's or an ad's embedding
WEIGHTS, CARD = "pctr.safetensors", "pctr.json"
# Of query, profile, reply and ad: query-ad, profile-ad, reply-ad, query-reply.
_COSINES = ((0, 3), (1, 3), (2, 3), (0, 2))
_COSINE_SCALE = 4.0  # cosines of sentences seldom leave 0..0.7: few steps teach little at that size
_PREDICTED_AT_ONCE = 4096


class Encoder(Protocol):
    """Embeds texts in unit vectors: `mechanisms.llm.encoder.TextEncoder`."""

    model: str

    def embed(self, texts: Sequence[str]) -> Floats: ...  # noqa: D102


class Embeddings:
    """Embeddings by an encoder, each text embedded once and by itself."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self._rows: dict[str, NDArray[np.float32]] = {}

    def __call__(self, texts: Iterable[str]) -> NDArray[np.float32]:
        """(texts, d)."""
        texts = list(texts)
        for text in dict.fromkeys(texts):
            if text not in self._rows:
                # Padding beside longer texts would move the last bits.
                self._rows[text] = self.encoder.embed([text])[0].astype(np.float32)
        return np.stack([self._rows[text] for text in texts])


@dataclass(frozen=True)
class Training(Parametric):
    """How a pCTR model is trained.

    Attributes:
        epochs: passes over the impressions; some thousand are learned in ten.
        learning_rate: of Adam.
        batch: impressions per step.
        hidden_ids: share of users and of ads that a step hides, so that the unknown are known.
        dropout: share of the projected texts that a step hides.
    """

    epochs: int = 8
    learning_rate: float = 1e-3
    batch: int = 256
    hidden_ids: float = 0.2
    dropout: float = 0.5

    def __post_init__(self) -> None:
        whole("epochs", self.epochs, least=0)
        whole("batch", self.batch, least=1)
        positive("learning_rate", self.learning_rate)
        for name in ("hidden_ids", "dropout"):
            non_negative(name, getattr(self, name))
            if getattr(self, name) >= 1:
                raise BadInput(f"{name} is {getattr(self, name)}; give a share below 1")


class Inputs(NamedTuple):
    """What the network reads: texts (rows, 4, d), users, ads (rows,) and numbers (rows, 2)."""

    texts: Tensor
    users: Tensor
    ads: Tensor
    numbers: Tensor

    def take(self, rows: Tensor | slice) -> Inputs:
        """The rows at `rows`."""
        return Inputs(*(each[rows] for each in self))


class Network(nn.Module):
    """Logits of clicks (rows,); index 0 of users and of ads is whoever is unknown."""

    def __init__(self, users: int, ads: int, width: int, dropout: float) -> None:
        super().__init__()
        self.users = nn.Embedding(users + 1, IDENTITY)
        self.ads = nn.Embedding(ads + 1, IDENTITY)
        self.project = nn.Linear(width, PROJECTED, bias=False)
        self.dropout = nn.Dropout(dropout)
        sizes = (4 * PROJECTED + len(_COSINES) + 2 * IDENTITY + 2, *HIDDEN)
        layers: list[nn.Module] = []
        for inner, outer in pairwise(sizes):
            layers += [nn.Linear(inner, outer), nn.ReLU()]
        self.mlp = nn.Sequential(*layers, nn.Linear(HIDDEN[-1], 1))
        for embedding in (self.users, self.ads):
            nn.init.normal_(embedding.weight, std=0.1)

    def forward(self, given: Inputs) -> Tensor:
        """Logits of clicks on the given impressions."""
        texts = given.texts
        cosines = torch.stack([(texts[:, a] * texts[:, b]).sum(1) for a, b in _COSINES], 1)
        read = [
            self.dropout(self.project(texts).flatten(1)),
            _COSINE_SCALE * cosines,
            self.users(given.users),
            self.ads(given.ads),
            given.numbers,
        ]
        return self.mlp(torch.cat(read, 1))[:, 0]


@dataclass(frozen=True, eq=False)
class PCTR:
    """A fitted click model.

    Attributes:
        network: its weights.
        embeddings: of texts.
        users: index of each known user, from 1.
        ads: index of each known ad, from 1.
        training: how it was fitted last.
        history: a row per epoch of the last fit, see `fit`.
    """

    network: Network
    embeddings: Embeddings
    users: Mapping[str, int]
    ads: Mapping[str, int]
    training: Training
    history: tuple[dict[str, float | None], ...] = ()

    @classmethod
    def fit(
        cls,
        examples: Impressions,
        embeddings: Embeddings,
        *,
        training: Training | None = None,
        seed: int = 0,
        validation: Impressions | None = None,
        start: PCTR | None = None,
    ) -> PCTR:
        """Fit a model to impressions with their clicks.

        Args:
            examples: at least one row.
            embeddings: keep them for the next fit: a text is embedded once.
            training: see `Training`.
            seed: of initial weights, order of rows, and what is hidden.
            validation: impressions of requests held out. After each epoch `history` has the `loss`
                on the examples, and on these `validation_loss`, `auc`, `calibration_error`,
                `calibration_by_chance`, and `correlation` with the users' own probabilities and
                `auc_of_truth`, theirs; None for what cannot be told.
            start: the model to go on from, which stays as it is.

        Raises:
            BadInput: no examples, or clicks that are not known.
        """
        training = training or Training()
        for name, given in (("examples", examples), ("validation", validation)):
            if given is not None and not (len(given) and np.isin(given.clicks, (0, 1)).all()):
                raise BadInput(
                    f"the {name} of a pCTR model are {len(given)} impressions, of which "
                    f"{int(np.isin(given.clicks, (0, 1)).sum())} have a click of 0 or 1; give some "
                    "rows, all with clicks"
                )
        users = _extended(start.users if start else {}, examples.user)
        ads = _extended(start.ads if start else {}, examples.ad)
        width = embeddings(examples.query[:1]).shape[1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = Network(len(users), len(ads), width, training.dropout)
            _begin(network, start, examples.clicks)
            model = cls(network, embeddings, users, ads, training)
            history = tuple(model._epochs(examples, validation, np.random.default_rng([seed, 5])))
        network.eval()
        return cls(network, embeddings, users, ads, training, history)

    def predict(self, impressions: Impressions) -> Floats:
        """(rows,) probability that each impression is clicked."""
        given = self.inputs(impressions)
        with torch.inference_mode():
            parts = [
                torch.sigmoid(self.network(given.take(slice(at, at + _PREDICTED_AT_ONCE))))
                for at in range(0, len(impressions), _PREDICTED_AT_ONCE)
            ]
        return torch.cat(parts).double().numpy() if parts else np.zeros(0)

    def click_probabilities(self, requests: Sequence[Request], features: Features) -> Floats:
        """(B, M, n) predictions for measured replies, 0 where an ad is not shown."""
        shown = Impressions.of(requests, features)
        return shown.scattered(self.predict(shown), features.exposure.shape)

    def inputs(self, rows: Impressions) -> Inputs:
        """What the network reads of impressions."""
        if not len(rows):
            return Inputs(*(torch.zeros(0) for _ in Inputs._fields))
        columns = (rows.query, rows.profile, rows.reply, rows.copy)
        numbers = np.stack([rows.shown - 1, rows.place], axis=1)
        return Inputs(
            texts=torch.from_numpy(np.stack([self.embeddings(each) for each in columns], axis=1)),
            users=torch.tensor([self.users.get(user, 0) for user in rows.user]),
            ads=torch.tensor([self.ads.get(ad, 0) for ad in rows.ad]),
            numbers=torch.from_numpy(numbers.astype(np.float32)),
        )

    def save(self, folder: str | Path) -> Path:
        """Write `pctr.safetensors` and `pctr.json` into `folder`; `load` gives the same model."""
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.network.state_dict(), folder / WEIGHTS)
        card = {
            "encoder": self.embeddings.encoder.model,
            "width": self.network.project.in_features,
            "users": sorted(self.users, key=self.users.__getitem__),
            "ads": sorted(self.ads, key=self.ads.__getitem__),
            "training": asdict(self.training),
            "history": self.history,
        }
        text = json.dumps(card, indent=1, ensure_ascii=False) + "\n"
        (folder / CARD).write_text(text, encoding="utf-8")
        return folder

    @classmethod
    def load(cls, folder: str | Path, embeddings: Embeddings) -> PCTR:
        """Read what `save` wrote.

        Raises:
            BadInput: no model there, a damaged one, or one that reads another encoder.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        folder = Path(folder)
        try:
            card = json.loads((folder / CARD).read_text(encoding="utf-8"))
            training = Training(**card["training"])
            users, ads = _extended({}, card["users"]), _extended({}, card["ads"])
            network = Network(len(users), len(ads), card["width"], training.dropout)
            network.load_state_dict(load_file(folder / WEIGHTS))
            history, encoder = tuple(card["history"]), card["encoder"]
        except OSError:
            raise BadInput(f"{folder} holds no pCTR model; fit one and save it there") from None
        except (ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise BadInput(f"pCTR model {folder} is damaged ({first}); fit it again") from None
        if encoder != embeddings.encoder.model:
            raise BadInput(
                f"pCTR model {folder} reads embeddings of {encoder}, not of "
                f"{embeddings.encoder.model}; give it its own"
            )
        return cls(network.eval(), embeddings, users, ads, training, history)

    def _epochs(
        self, examples: Impressions, validation: Impressions | None, rng: np.random.Generator
    ) -> Iterator[dict[str, float | None]]:
        """Train, and say after each epoch how it stands."""
        given, clicks = self.inputs(examples), torch.from_numpy(examples.clicks.astype(np.float32))
        optimiser = torch.optim.Adam(self.network.parameters(), lr=self.training.learning_rate)
        for epoch in range(1, self.training.epochs + 1):
            self.network.train()
            order = torch.from_numpy(rng.permutation(len(examples)))
            total = 0.0
            for rows in order.split(self.training.batch):
                logits = self.network(self._hidden(given.take(rows), rng))
                loss = binary_cross_entropy_with_logits(logits, clicks[rows])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                total += float(loss.detach()) * len(rows)
            self.network.eval()
            figures = {} if validation is None else self.scores(validation)
            yield {"epoch": epoch, "loss": total / len(examples), **figures}

    def scores(self, rows: Impressions) -> dict[str, float | None]:
        """How good predictions are on impressions with clicks; see `fit`."""
        predicted = self.predict(rows)
        clicked = rows.clicks > 0
        reliable = calibration(predicted, rows.clicks)
        told = not np.isnan(rows.ctr).any()
        surprise = -np.log(np.maximum(np.where(clicked, predicted, 1 - predicted), 1e-12))
        figures = {
            "validation_loss": float(surprise.mean()),
            "auc": auc(predicted, rows.clicks),
            "calibration_error": reliable.error,
            "calibration_by_chance": reliable.by_chance,
            "correlation": correlation(predicted, rows.ctr) if told else np.nan,
            "auc_of_truth": auc(rows.ctr, rows.clicks) if told else np.nan,
        }
        return {name: None if np.isnan(figure) else figure for name, figure in figures.items()}

    def _hidden(self, given: Inputs, rng: np.random.Generator) -> Inputs:
        """The inputs with a share of users and of ads unknown."""
        hide = torch.from_numpy(rng.random((2, len(given.users))) < self.training.hidden_ids)
        return given._replace(
            users=given.users.masked_fill(hide[0], 0), ads=given.ads.masked_fill(hide[1], 0)
        )


def _extended(known: Mapping[str, int], names: Iterable[str]) -> dict[str, int]:
    """Indices of `known` and, after them, of new `names` in their order."""
    index = dict(known)
    for name in names:
        index.setdefault(name, len(index) + 1)
    return index


@torch.no_grad()
def _begin(network: Network, start: PCTR | None, clicks: Floats) -> None:
    """Weights to begin from: those of `start`, or random ones at the click rate."""
    if start is None:
        rate = np.clip(clicks.mean(), 1e-3, 1 - 1e-3)
        network.mlp[-1].bias.fill_(float(np.log(rate / (1 - rate))))
        return
    fresh, known = network.state_dict(), start.network.state_dict()
    for name in ("users.weight", "ads.weight"):
        known[name] = torch.cat([known[name], fresh[name][len(known[name]) :]])
    network.load_state_dict(known)
