"""The network of the weather forecast: a recurrent network whose steps need not wait for each other."""

import math

import torch
from torch import nn
from torch.nn import functional

from model_store.weather_data import FEATURES, HORIZON, MAX_STEPS, TEMPERATURE, FloatArray

_TEMPERATURE, _HOUR = FEATURES.index(TEMPERATURE), FEATURES.index("hour")


class MinGru(nn.Module):
    """A minimal gated recurrent unit: states [n, T, hidden] from inputs [n, T, width], starting from zeros.

    With z and c of the input x alone, h[t] = (1 - z[t]) * h[t-1] + z[t] * c[t] (Feng et al., "Were RNNs All We
    Needed?", https://arxiv.org/abs/2410.01201, with tanh for c). As no gate reads the state, all steps are one
    computation, by doubling (Hillis and Steele, https://doi.org/10.1145/7902.7903): after the round of `reach`, a
    state holds its `reach` last inputs. A GRU goes step by step; exported, it holds one length of history only.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gates = nn.Linear(width, 2 * hidden)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        gate, candidate = self.gates(inputs).chunk(2, dim=2)
        gate = torch.sigmoid(gate)
        state, kept = gate * torch.tanh(candidate), 1 - gate
        # As many rounds as the longest history needs, so that the program is the same for any length.
        for reach in (2**power for power in range(math.ceil(math.log2(MAX_STEPS)))):
            state = torch.addcmul(state, kept, _later(state, reach))
            kept = kept * _later(kept, reach)
        return state


def _later(values: torch.Tensor, steps: int) -> torch.Tensor:
    """Every step's values so many steps later, zeros before them, [n, T, …] as before."""
    return functional.pad(values, (0, 0, steps, 0))[:, : values.shape[1]]


class WeatherNetwork(nn.Module):
    """Temperature of the next HORIZON hours, float32 [n, HORIZON], from values [n, T, F] and lengths, int64 [n].

    A missing value (NaN) becomes the last one known before it, or the feature's centre where there is none. What
    stands behind a row's length has no influence.
    """

    centre: torch.Tensor
    scale: torch.Tensor

    def __init__(self, centre: FloatArray, scale: FloatArray, hidden: int = 48) -> None:
        """`centre` and `scale` [F] normalise the values."""
        super().__init__()
        self.register_buffer("centre", torch.from_numpy(centre))
        self.register_buffer("scale", torch.from_numpy(scale))
        width = len(FEATURES) + 1  # the hour is two
        self.first = MinGru(width, hidden)
        self.second = MinGru(hidden, hidden)
        self.widen = nn.Linear(hidden + width, hidden)
        self.last = nn.Linear(hidden, HORIZON)

    def forward(self, values: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        features = self._features(values)
        first = self.first(features)
        steps = torch.cat((first + self.second(first), features), dim=2)
        end = (lengths - 1)[:, None, None].expand(-1, 1, steps.shape[2])
        last = steps.gather(1, end).squeeze(1)
        change = self.last(torch.relu(self.widen(last)))
        # The forecast is a change from the last temperature: where little is known, it stays as it is.
        known = last[:, -features.shape[2] + _TEMPERATURE, None]
        return torch.addcmul(self.centre[_TEMPERATURE], known + change, self.scale[_TEMPERATURE])

    def _features(self, values: torch.Tensor) -> torch.Tensor:
        """Filled and normalised, the hour as a place on a circle, [n, T, F + 1]."""
        steps = torch.arange(values.shape[1], device=values.device)[:, None]
        latest_known = torch.where(torch.isnan(values), 0, steps).cummax(dim=1).values
        filled = values.gather(1, latest_known)
        normal = torch.nan_to_num((filled - self.centre) / self.scale)
        angle = torch.nan_to_num(filled[..., _HOUR:]) * (2 * math.pi / 24)
        return torch.cat((normal[..., :_HOUR], torch.sin(angle), torch.cos(angle)), dim=2)
