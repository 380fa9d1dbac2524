"""The correction of a simple simulator: what it must be told so that it does what the real robot does.

Residual Model Learning (Gruenstein, Chen, Doshi, Agrawal, "Residual Model Learning for Microrobot Control", ICRA 2021,
arXiv 2104.00631) learns the controls k(q, qd, u) that make a simple simulator follow a log. Here a linear map comes
first, which alone is a system identification, and bounded networks add to it where there are data.

Shapes: n joints, m inputs of the real robot, c controls of the simulator.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from offroad.errors import OffroadError
from offroad.nets.ensemble import apply_ensemble, ensemble
from offroad.nets.mlp import MLP

FORMAT = 1
Numbers = Array | np.ndarray
FORMS = ("action", "delta", "dynamics")


@dataclass(frozen=True)
class Limb:
    """A part of the robot with a correction of its own; limbs of one shape share their weights.

    Indices of its joints, of the real robot's inputs that move it, and of the simulator's controls (by default those of
    the inputs). Signs (by default all 1) mirror a limb onto the first one, for example those of a left and a right leg.
    """

    joints: tuple[int, ...]
    inputs: tuple[int, ...]
    controls: tuple[int, ...] = ()
    joint_signs: tuple[float, ...] = ()
    input_signs: tuple[float, ...] = ()
    control_signs: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        defaults = {
            "controls": self.inputs,
            "joint_signs": (1.0,) * len(self.joints),
            "input_signs": (1.0,) * len(self.inputs),
        }
        for name, default in defaults.items():
            object.__setattr__(self, name, tuple(getattr(self, name)) or default)
        object.__setattr__(self, "control_signs", tuple(self.control_signs) or (1.0,) * len(self.controls))
        for name, signs in (
            ("joints", self.joint_signs),
            ("inputs", self.input_signs),
            ("controls", self.control_signs),
        ):
            if len(signs) != len(getattr(self, name)):
                raise OffroadError(f"the limb has {len(getattr(self, name))} {name} but {len(signs)} signs for them")


class ResidualModel(eqx.Module):
    """`control, force = model(q, qd, u)`: what to give to the simple simulator when the real robot is given u.

    `form` is "action" (the controls are k(q, qd, u)), "delta" (u + k) or "dynamics" (u itself, and k as generalised
    forces on the joints). Features are standardised. `delay` rows lie between an input and its effect: `u` here is the
    input of so long ago. `networks` is None in a model that is linear.
    """

    linear: Float[Array, "out features"]
    mean: Float[Array, " in"]
    scale: Float[Array, " in"]
    unit: Float[Array, " out"]
    networks: MLP | None
    bound: Float[Array, " out"]
    precision: Float[Array, "in in"]
    radius: Float[Array, ""]
    low: Float[Array, " in"]
    high: Float[Array, " in"]
    form: str = eqx.field(static=True)
    limbs: tuple[Limb, ...] = eqx.field(static=True)
    joints: tuple[str, ...] = eqx.field(static=True)
    controls: tuple[str, ...] = eqx.field(static=True)
    inputs: int = eqx.field(static=True)
    dt: float = eqx.field(static=True)
    delay: int = eqx.field(static=True)
    notes: tuple[str, ...] = eqx.field(static=True)

    def __call__(
        self, q: Float[Numbers, "*batch n"], qd: Float[Numbers, "*batch n"], u: Float[Numbers, "*batch m"]
    ) -> tuple[Float[Array, "*batch c"], Float[Array, "*batch n"]]:
        q, qd, u = (jnp.asarray(x, jnp.float32) for x in (q, qd, u))
        return self.spread(self.local(self.features(q, qd, u)), q, u)

    def features(
        self, q: Float[Numbers, "*batch n"], qd: Float[Numbers, "*batch n"], u: Float[Numbers, "*batch m"]
    ) -> Float[Array, "*batch limbs in"]:
        """What each limb sees of itself, mirrored and standardised."""
        return (gather(self.limbs, q, qd, u) - self.mean) / self.scale

    def local(self, x: Float[Array, "*batch limbs in"]) -> Float[Array, "*batch limbs out"]:
        """The correction of each limb in its own frame."""
        y = x @ self.linear[:, :-1].T + self.linear[:, -1]
        if self.networks is not None:
            found = self.members(x)
            y = y + self.agreement(found) * self.gate(x)[..., None] * found.mean(0)
        return self.unit * y

    def members(self, x: Float[Array, "*batch limbs in"]) -> Float[Array, "members *batch limbs out"]:
        """What each network adds to the linear map, in units of `unit`, before the gate."""
        assert self.networks is not None
        return self.bound * jnp.tanh(apply_ensemble(self.networks, jnp.clip(x, self.low, self.high)))

    def agreement(self, found: Float[Array, "members *batch limbs out"]) -> Float[Array, "*batch limbs out"]:
        """1 where the members agree, 0 where their spread drowns their mean: the shrinkage of a noisy estimate."""
        mean, variance = found.mean(0), found.var(0)
        return mean**2 / (mean**2 + variance + 1e-12)

    def gate(self, x: Float[Array, "*batch limbs in"]) -> Float[Array, "*batch limbs"]:
        """1 within the data (Mahalanobis distance below `radius`), falling to 0.1 at 1.5 radii and 0 at 2.5."""
        distance = jnp.sqrt(jnp.einsum("...i,ij,...j->...", x, self.precision, x) + 1e-12)
        return jnp.exp(-9.2 * jnp.maximum(distance / self.radius - 1.0, 0.0) ** 2)

    def trust(
        self, q: Float[Numbers, "*batch n"], qd: Float[Numbers, "*batch n"], u: Float[Numbers, "*batch m"]
    ) -> Float[Array, "*batch"]:
        """How far the state and the input lie within the log, in [0, 1]: the smallest gate of all limbs."""
        return self.gate(self.features(q, qd, u)).min(-1)

    def spread(
        self, y: Float[Array, "*batch limbs out"], q: Float[Array, "*batch n"], u: Float[Array, "*batch m"]
    ) -> tuple[Float[Array, "*batch c"], Float[Array, "*batch n"]]:
        """Controls and forces of the whole robot from the corrections of its limbs."""
        zero = jnp.zeros_like(q)
        if self.form == "dynamics":
            for limb, part in zip(self.limbs, jnp.moveaxis(y, -2, 0)):
                zero = zero.at[..., jnp.array(limb.joints)].add(part * jnp.array(limb.joint_signs))
            return u, zero
        control = u if self.form == "delta" else jnp.zeros((*u.shape[:-1], len(self.controls)), u.dtype)
        for limb, part in zip(self.limbs, jnp.moveaxis(y, -2, 0)):
            control = control.at[..., jnp.array(limb.controls)].add(part * jnp.array(limb.control_signs))
        return control, zero

    def only_linear(self) -> "ResidualModel":
        """The same without networks: a linear system identification."""
        return eqx.tree_at(lambda m: m.networks, self, None, is_leaf=lambda x: x is None)

    def save(self, folder: str | Path) -> Path:
        """Writes `model.npz` and `model.json` into the folder, which is made if it is missing."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        arrays = [np.asarray(x) for x in jax.tree.leaves(eqx.filter(self, eqx.is_array))]
        np.savez(folder / "model.npz", allow_pickle=False, **{f"array_{i}": x for i, x in enumerate(arrays)})
        about = {name: getattr(self, name) for name in STATIC} | {
            "format": FORMAT,
            "limbs": [asdict(limb) for limb in self.limbs],
            "hidden": None if self.networks is None else [x.weight.shape[1] for x in self.networks.layers[:-1]],
            "members": 0 if self.networks is None else len(self.networks.layers[0].weight),
        }
        (folder / "model.json").write_text(json.dumps(about, indent=1) + "\n")
        return folder


STATIC = ("form", "joints", "controls", "inputs", "dt", "delay", "notes")


def load(folder: str | Path) -> ResidualModel:
    """The model that `ResidualModel.save` wrote into the folder, equal to the bit."""
    folder = Path(folder)
    try:
        about = json.loads((folder / "model.json").read_text())
        with np.load(folder / "model.npz", allow_pickle=False) as file:
            arrays = [jnp.asarray(file[f"array_{i}"]) for i in range(len(file.files))]
    except (OSError, ValueError, KeyError) as error:
        raise OffroadError(f"'{folder}' holds no residual model that can be read ({error})") from error
    if about.get("format") != FORMAT:
        raise OffroadError(f"the residual model in '{folder}' was saved by another version of offroad; fit it again")
    limbs = tuple(Limb(**{name: tuple(x) for name, x in limb.items()}) for limb in about["limbs"])
    like = empty(
        limbs, hidden=about["hidden"], members=about["members"],
        **{name: tuple(x) if isinstance(x := about[name], list) else x for name in STATIC},
    )  # fmt: skip
    structure = jax.tree.structure(eqx.filter(like, eqx.is_array))
    if structure.num_leaves != len(arrays):
        raise OffroadError(f"the residual model in '{folder}' is not whole; fit it again")
    return eqx.combine(jax.tree.unflatten(structure, arrays), eqx.filter(like, eqx.is_array, inverse=True))


def empty(limbs: tuple[Limb, ...], hidden: Sequence[int] | None, members: int, **static: Any) -> ResidualModel:
    """A model of that shape that adds nothing."""
    first = limbs[0]
    size = 2 * len(first.joints) + len(first.inputs)
    out = len(first.joints) if static["form"] == "dynamics" else len(first.controls)
    zeros, ones = jnp.zeros, jnp.ones
    return ResidualModel(
        linear=zeros((out, size + 1)), mean=zeros(size), scale=ones(size), unit=ones(out),
        networks=None if hidden is None else networks(size, hidden, out, members, jax.random.key(0)),
        bound=zeros(out), precision=jnp.eye(size), radius=jnp.array(1.0), low=-ones(size), high=ones(size),
        limbs=limbs, **static,
    )  # fmt: skip


def networks(size: int, hidden: Sequence[int], out: int, members: int, key: PRNGKeyArray) -> Any:
    """An ensemble of networks that begin near zero."""
    return ensemble(lambda k: MLP((size, *hidden, out), key=k, final_scale=0.1), members, key)


def gather(
    limbs: tuple[Limb, ...],
    q: Float[Numbers, "*batch n"],
    qd: Float[Numbers, "*batch n"],
    u: Float[Numbers, "*batch m"],
) -> Float[Array, "*batch limbs in"]:
    """The positions, velocities and inputs of each limb, mirrored."""
    q, qd, u = (jnp.asarray(x, jnp.float32) for x in (q, qd, u))
    joints = jnp.array([limb.joints for limb in limbs])
    inputs = jnp.array([limb.inputs for limb in limbs], int)
    signs = jnp.array([limb.joint_signs for limb in limbs])
    mirrored = u[..., inputs] * jnp.array([limb.input_signs for limb in limbs])
    return jnp.concatenate([q[..., joints] * signs, qd[..., joints] * signs, mirrored], -1)


def whole(joints: int, inputs: int, controls: int) -> Limb:
    """The robot as one limb."""
    return Limb(tuple(range(joints)), tuple(range(inputs)), tuple(range(controls)))
