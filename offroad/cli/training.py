"""`offroad train`: in an environment or from data, with the options of the agent."""

import sys
from dataclasses import dataclass, field, make_dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import Positional

from offroad.cli.data import Ends, load
from offroad.cli.parsing import EnvOptions, Whole, env_options
from offroad.errors import OffroadError, unknown


@dataclass
class Train:
    """Train an agent in an environment, or with --data FILE from data alone, and save it in a run folder.

    Example: offroad train ppo --env CartPole-v1 --steps 1e5
    """

    agent: Positional[str]
    """The agent; `offroad list` shows all."""
    env: str
    """Environment id, of this library or of Gymnasium."""
    env_options: EnvOptions = ()
    """An option of the environment, such as start=sparse; may be repeated. Values are JSON or text."""
    rom: Path | None = None
    """A ROM that you own, for offroad/Mario-v0."""
    bonus: str | None = None
    """A reward that the agent makes itself, beside the environment's: `offroad list` shows all."""
    bonus_weight: float = 1.0
    """Weight of that bonus, whose scale is about one."""
    reward_weight: float = 1.0
    """Weight of the environment's reward beside a bonus; 0 explores without any."""
    steps: Whole = 1_000_000
    """Environment steps, summed over all copies; 1e6 and 1_000_000 work too."""
    num_envs: int = 1
    """Copies of the environment that run side by side."""
    seed: int = 0
    """Seed of the agent, the environments and exploration."""
    out: Path | None = None
    """Run folder; by default runs/ENV-AGENT-SEED."""
    resume: bool = False
    """Continue the run in that folder after an interruption."""
    eval_every: Whole | None = None
    """Steps between evaluations on seeds that training never sees; by default a tenth of the run."""
    eval_episodes: int = 10
    """Episodes per evaluation."""
    checkpoint_every: Whole | None = None
    """Steps between checkpoints; by default a tenth of the run."""
    wandb: bool = False
    """Log to Weights & Biases too."""

    def run(self) -> int:
        import jax

        from offroad import make_vec
        from offroad.agents import AGENTS
        from offroad.data.spaces import Spaces
        from offroad.train import Schedule, off_policy, on_policy

        config, options = self.config, self.trainer  # pyright: ignore[reportAttributeAccessIssue]
        if getattr(options, "learning_starts", 0) >= self.steps:
            raise OffroadError(
                f"--learning-starts {options.learning_starts} leaves nothing to learn in --steps {self.steps}; "
                "lower the one or raise the other"
            )
        if self.bonus is None and (self.bonus_weight, self.reward_weight) != (1.0, 1.0):
            raise OffroadError("--bonus-weight and --reward-weight weigh a bonus beside the reward; add --bonus NAME")
        out = self.out or Path("runs") / f"{self.env.replace('/', '-')}-{self.agent}-{self.seed}"
        options_of_env = env_options(self.env_options, self.rom)
        env, eval_env = (make_vec(self.env, n, **options_of_env) for n in (self.num_envs, self.eval_episodes))
        agent = AGENTS[self.agent][0].create(Spaces.of(env), config, jax.random.key(self.seed))
        if self.bonus is not None:
            agent = self._curious(agent, self.bonus, on_policy=isinstance(options, OnPolicy))
        tenth = max(self.steps // 10, 1)
        schedule = Schedule(
            evaluate=tenth if self.eval_every is None else self.eval_every,
            checkpoint=tenth if self.checkpoint_every is None else self.checkpoint_every,
            episodes=self.eval_episodes,
        )
        print(f"{self.agent} in {self.num_envs} x {self.env}, run folder {out}")
        result = (on_policy if isinstance(options, OnPolicy) else off_policy)(
            agent,
            env,
            self.steps,
            seed=self.seed,
            out=out,
            resume=self.resume,
            eval_env=eval_env,
            schedule=schedule,
            wandb=self.wandb,
            **vars(options),
        )
        return _said(result, out, self.eval_episodes)

    def _curious(self, agent: Any, bonus: str, on_policy: bool) -> Any:
        """The agent with its bonus, which sees observations through the same kind of encoder."""
        import jax

        from offroad.rewards import REWARDS, Curious

        if bonus not in REWARDS:
            raise unknown("bonus", bonus, REWARDS)
        kind, settings = REWARDS[bonus]
        settings = settings()
        if hasattr(settings, "encoder") and hasattr(agent.config, "encoder"):
            settings = replace(settings, encoder=agent.config.encoder)
        reward = kind.create(agent.spaces, settings, jax.random.fold_in(jax.random.key(self.seed), 1))
        if reward.episodic and not on_policy:
            raise OffroadError(
                f"the bonus {bonus} remembers an episode, which {self.agent}'s replay does not keep in order; "
                f"train ppo with it, or {self.agent} with a bonus that has no memory, such as rnd"
            )
        warm_up = getattr(settings, "fit_updates", 1) if on_policy else 0
        return Curious(  # pyright: ignore[reportCallIssue]  (spaces and config are properties)
            agent=agent,
            reward=reward,
            extrinsic=self.reward_weight,
            intrinsic=self.bonus_weight,
            warm_up=warm_up,
        )


@dataclass
class OnPolicy:
    rollouts_per_call: int = 1
    """Updates per compiled call, for environments written in JAX."""
    devices: int = 1
    """Spread environments and batches over this many devices."""


@dataclass
class OffPolicy:
    learning_starts: Whole = 10_000
    """Steps of random actions before learning begins."""
    train_every: int = 8
    """Steps of each copy between learning phases."""
    update_ratio: float = 1.0
    """Gradient steps per environment step."""
    devices: int = 1
    """Spread environments and batches over this many devices."""


@dataclass
class TrainOffline:
    """Train an agent from data alone and save it, with its curves, in a run folder.

    Example: offroad train cql --data antmaze.hdf5 --env offroad/AntMaze-medium-v0
    """

    agent: Positional[str]
    """The agent; any but ppo can learn from data, but only bc, cql, iql and their like are made for it."""
    data: Path
    """An .npz, .hdf5, .csv or .parquet file, a folder of .npy files, or a Minari data set."""
    env: str | None = None
    """The environment that the data are from, for its spaces and for evaluation; by default spaces are guessed."""
    env_options: EnvOptions = ()
    """An option of that environment, such as start=sparse; may be repeated. Values are JSON or text."""
    updates: Whole = 100_000
    """Gradient steps; 1e5 and 100_000 work too."""
    seeds: tuple[int, ...] = (0,)
    """Agents with these seeds train side by side."""
    top: float | None = None
    """Learn from this share of the episodes only, those with the highest returns."""
    reward_scale: float = 1.0
    """Rewards are multiplied by this, before reward-shift is added."""
    reward_shift: float = 0.0
    """For sparse rewards: with scale 10 and shift -5, rewards 0 and 1 become -5 and 5."""
    ends: Ends = None
    """What the end of an episode means where the file has no flags."""
    columns: tuple[str, ...] = ()
    """Names in the file, such as rewards=click observations=age,height; terminated= ignores that column."""
    out: Path | None = None
    """Run folder; by default runs/FILE-AGENT-SEEDS."""
    resume: bool = False
    """Continue the run in that folder after an interruption."""
    eval_every: Whole | None = None
    """Updates between evaluations; by default a tenth of the run."""
    eval_episodes: int = 10
    """Episodes per evaluation."""
    checkpoint_every: Whole | None = None
    """Updates between checkpoints; by default a tenth of the run."""
    wandb: bool = False
    """Log to Weights & Biases too."""

    def run(self) -> int:
        import jax
        import numpy as np

        from offroad import make_vec
        from offroad.agents import AGENTS, stacked
        from offroad.data.bounds import guessed_spaces
        from offroad.data.spaces import Spaces
        from offroad.train import Schedule, offline

        if not self.seeds:
            raise OffroadError("--seeds names no seed; give one or more, such as --seeds 0 1 2")
        dataset = load(self.data, self.ends, self.columns)
        if self.top is not None:
            dataset = dataset.top(self.top)
        options = env_options(self.env_options)
        eval_env = make_vec(self.env, self.eval_episodes, **options) if self.env else None
        spaces = Spaces.of(eval_env) if eval_env else guessed_spaces(dataset)
        dataset.check(spaces)
        rewards = dataset.rewards * np.float32(self.reward_scale) + np.float32(self.reward_shift)
        dataset = _inside(replace(dataset, rewards=rewards), spaces)
        out = self.out or Path("runs") / "-".join([self.data.stem, self.agent, *map(str, self.seeds)])
        tenth = max(self.updates // 10, 1)
        schedule = Schedule(
            evaluate=tenth if self.eval_every is None else self.eval_every,
            checkpoint=tenth if self.checkpoint_every is None else self.checkpoint_every,
            episodes=self.eval_episodes,
        )
        config = self.config  # pyright: ignore[reportAttributeAccessIssue]
        agents = [AGENTS[self.agent][0].create(spaces, config, jax.random.key(seed)) for seed in self.seeds]
        one = len(agents) == 1
        print(f"{self.agent} from {len(dataset.lengths)} episodes, {len(dataset)} steps, run folder {out}")
        result = offline(
            agents[0] if one else stacked(agents),
            dataset,
            self.updates,
            seed=self.seeds[0] if one else self.seeds,
            out=out,
            resume=self.resume,
            eval_env=eval_env,
            schedule=schedule,
            wandb=self.wandb,
        )
        return _said(result, out, self.eval_episodes)


def _inside(dataset: Any, spaces: Any) -> Any:
    """The data set with its actions within finite bounds: no agent could repeat the others."""
    import numpy as np
    from gymnasium import spaces as gym_spaces

    if not isinstance(space := spaces.action, gym_spaces.Box):
        return dataset
    clipped = np.clip(dataset.actions, space.low, space.high)
    if beyond := int((clipped != dataset.actions).reshape(len(clipped), -1).any(axis=1).sum()):
        bounds = f"{space.low.min():g} to {space.high.max():g}"
        print(f"{beyond} of {len(clipped)} rows have actions beyond {bounds}; they are clipped")
        return replace(dataset, actions=clipped)
    return dataset


def with_options(argv: list[str]) -> type:
    """The command with the options of its agent and trainer, whose defaults depend on the environment."""
    if not argv or argv[0].startswith("-"):
        return Train
    from offroad.agents import AGENTS, OFFLINE

    name, words = argv[0], {word.split("=")[0] for word in argv}
    if name not in AGENTS:
        raise unknown("agent", name, AGENTS)
    config = AGENTS[name][1]
    if "--data" in words or name in OFFLINE:
        if name == "ppo":
            raise OffroadError(f"ppo learns from its own experience alone; use one of {', '.join(OFFLINE)} with --data")
        if not words & {"--data", "--help", "-h"}:
            raise OffroadError(f"{name} learns from data; name a file with --data, and with --env where to evaluate it")
        return _flat(TrainOffline, config=config())
    compiled, trainer = _is_compiled(argv), OnPolicy() if name == "ppo" else OffPolicy()
    default, copies = config(), 8
    if isinstance(trainer, OnPolicy):
        # Many short rollouts instead of one long one: as much data per update, collected faster.
        copies = 256 if compiled else 16
        default = replace(default, rollout=128, minibatch=4096) if compiled else replace(default, rollout=128)
    elif compiled:
        copies, trainer.train_every = 64, 1
    return _flat(Train, ("num_envs", int, field(default=copies)), config=default, trainer=trainer)


def _flat(command: type, *fields: Any, **options: Any) -> type:
    """The command with more fields, among them dataclasses whose options stand beside its own."""
    flat = tyro.conf.arg(name="")
    nested = [
        (name, Annotated[type(default), flat], field(default_factory=lambda default=default: default))
        for name, default in options.items()
    ]
    return make_dataclass(
        command.__name__, [*fields, *nested], bases=(command,), namespace={"__doc__": command.__doc__}
    )


def _is_compiled(argv: list[str]) -> bool:
    """Whether the environment after `--env` is written in JAX."""
    words = [word for arg in argv for word in (arg.split("=", 1) if arg.startswith("--") else [arg])]
    if "--env" not in words[:-1]:
        return False
    from offroad import make_vec
    from offroad.train.collect import is_compiled

    pairs = list(pairwise(words))
    rom = dict(pairs).get("--rom")
    options = env_options(tuple(word for name, word in pairs if name == "--env-option"), rom)
    env = make_vec(words[words.index("--env") + 1], **options)
    env.close()
    return is_compiled(env)


def _said(result: Any, out: Path, episodes: int) -> int:
    """Tells how the training ended. **Returns:** the exit status."""
    import numpy as np

    if result.interrupted:
        print(f"interrupted at step {result.step:,}; the same command with --resume continues", file=sys.stderr)
        return 130
    scores = [line["eval/return"] for line in result.history if "eval/return" in line]
    score = f": mean return {np.mean(scores[-1]):.6g} over {episodes} episodes on seeds of their own" if scores else ""
    print(f"done after {result.step:,} steps{score}")
    play = f"offroad play {out}, " if scores else ""
    print(f"next: {play}offroad report {out}, offroad export {out}")
    return 0
