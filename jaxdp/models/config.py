"""Settings of the network."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

from jaxdp.models import MODELS
from jaxdp.settings.rules import Rule

_MODEL = Rule(
    lambda name: name in MODELS or ":" in name,
    f"{{path}} must be one of {', '.join(MODELS)}, or your own model as 'package.module:Name', not {{value!r}}",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network.

    Attributes:
      name: a name in the table of models, or `package.module:Name` for your own model.
      options: all further settings of the group, passed to the model unchanged.
    """

    name: Annotated[str, _MODEL]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
