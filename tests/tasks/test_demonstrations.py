"""A demonstrator that counts: every number in an episode tells where it belongs."""

import dataclasses

import jax
import numpy as np
import pytest
from gymnasium import spaces as gym_spaces
from gymnasium.vector import VectorWrapper
from jax_envs import point

from offroad.agents import DDPG, DDPGConfig, Imitation
from offroad.data.replay import Replay
from offroad.data.spaces import Spaces
from offroad.data.transitions import Transition
from offroad.errors import OffroadError
from offroad.tasks.demonstrations import DemonstrationReplay, Demonstrations
from offroad.tasks.goals import GoalTask, HindsightReplay
from offroad.train.off_policy import off_policy

SPACES = Spaces(
    gym_spaces.Dict(objects=gym_spaces.Box(-1, 1, (2, 3)), deep=gym_spaces.Dict(gear=gym_spaces.Discrete(9))),
    gym_spaces.Box(-1, 1, (2,)),
)


def rollout(lengths, base=0):
    """One environment for each sequence of lengths; the last episode of each is one step too short to end."""
    steps = sum(lengths[0])
    assert all(sum(each) == steps for each in lengths)
    copies = len(lengths)
    number = base + np.arange(steps)[:, None] + 100 * np.arange(copies)
    ends = np.zeros((steps, copies), bool)
    for copy, each in enumerate(lengths):
        ends[np.cumsum(each)[:-1] - 1, copy] = True

    def observe(number):
        objects = np.broadcast_to(number[..., None, None], (*number.shape, 2, 3)).astype(np.float64)
        return {"objects": objects, "deep": {"gear": number}}

    action = np.stack([number, -number], -1).astype(np.float32)
    transitions = Transition(
        observe(number), action, number.astype(np.float64), observe(number + 1), ends & (number % 2 == 0), ends
    )
    states = [
        [{"qpos": np.full(2 + copy, float(number[t, copy])), "time": float(t)} for copy in range(copies)]
        for t in range(steps)
    ]
    return transitions, states


def shown(**options):
    transitions, states = rollout([(3, 2, 4), (5, 3, 1)])
    return Demonstrations.of_rollout(transitions, states=states, **options)


def experience(replay, steps=20):
    replay.add(rollout([(steps,)], base=1000)[0], np.ones((steps, 1), bool))
    return replay


def mixed(share=0.25):
    apart, found = Replay(50), shown()
    found.fill(apart)
    return DemonstrationReplay(Replay(30), apart, share)


def test_rollouts_are_cut_into_the_episodes_that_ended():
    found = shown()
    assert found.lengths.tolist() == [3, 2, 5, 3]
    assert found.transitions.reward.tolist() == [0, 1, 2, 3, 4, *range(100, 108)]
    assert found.transitions.observation["objects"].dtype == np.float32  # as the trainer collects
    assert [len(state["qpos"]) for state in found.states] == [3, 2, 5, 3]
    np.testing.assert_array_equal(found.states[2]["qpos"][:, 0], np.arange(100, 105))
    mask = np.ones((9, 2), bool)
    mask[[0, 6], [0, 1]] = False  # steps that were none
    masked = shown(mask=mask)
    assert masked.transitions.reward.tolist() == [1, 2, 3, 4, 100, 101, 102, 103, 104, 105, 107]
    assert masked.lengths.tolist() == [2, 2, 5, 2]


def test_only_episodes_that_are_kept_at_their_end():
    keep = np.zeros((9, 2), bool)
    keep[[2, 3], 0] = True  # the end of the first episode, the middle of the second
    keep[7, 1] = True
    found = shown(keep=keep)
    assert found.transitions.reward.tolist() == [0, 1, 2, 105, 106, 107]
    assert found.states[1]["qpos"][0].tolist() == [105.0] * 3
    with pytest.raises(OffroadError, match="no episode ended in 9 steps of 2 environments"):
        shown(keep=np.zeros((9, 2), bool))


@pytest.mark.parametrize("name", ["demonstrations.npz", "without suffix"])
def test_files_give_back_the_same_without_pickle(name, tmp_path):
    found, path = shown(), tmp_path / name
    found.save(path)
    with np.load(path, allow_pickle=False) as file:
        assert {"observation/objects", "observation/deep/gear", "action", "lengths"} <= set(file.files)
        assert all(file[key].dtype != object for key in file.files)
    loaded = Demonstrations.load(path, SPACES)
    one, other = ((x.transitions, x.lengths, x.states) for x in (found, loaded))
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other)):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    dataclasses.replace(found, states=None).save(path)
    assert Demonstrations.load(path).states is None


def test_files_that_are_none_are_named(tmp_path):
    path = tmp_path / "file.npz"
    with pytest.raises(OffroadError, match=r"file.npz.* cannot be read"):
        Demonstrations.load(path)
    for content in (b"", b"not an archive", b"PK\x03\x04 torn"):
        path.write_bytes(content)
        with pytest.raises(OffroadError, match=r"file.npz.* cannot be read"):
            Demonstrations.load(path)
    np.savez(path, action=np.zeros(3), lengths=np.array([3]))
    with pytest.raises(OffroadError, match=r"hold \['action'\]; expected lengths and"):
        Demonstrations.load(path)
    np.savez(path, action=np.array([{}], object))
    with pytest.raises(OffroadError, match="cannot be read"):
        Demonstrations.load(path)


def test_other_environments_are_told_by_the_array_and_both_shapes(tmp_path):
    found = shown()
    found.check(SPACES)
    objects = gym_spaces.Dict({**SPACES.observation.spaces, "objects": gym_spaces.Box(-1, 1, (4, 3))})
    with pytest.raises(OffroadError, match=r"'observation/objects' shape \(2, 3\), the environment has shape \(4, 3\)"):
        found.check(Spaces(objects, SPACES.action))
    with pytest.raises(OffroadError, match=r"'action' shape \(2,\), the environment has shape \(3,\)"):
        found.check(Spaces(SPACES.observation, gym_spaces.Box(-1, 1, (3,))))
    more = gym_spaces.Dict({**SPACES.observation.spaces, "robot": gym_spaces.Box(-1, 1, (4,))})
    with pytest.raises(OffroadError, match=r"'observation/robot' nothing, the environment has shape \(4,\)"):
        found.check(Spaces(more, SPACES.action))
    path = tmp_path / "demonstrations.npz"
    found.save(path)
    with pytest.raises(OffroadError, match="'observation/robot' nothing"):
        Demonstrations.load(path, Spaces(more, SPACES.action))


def test_arrays_that_do_not_fit_each_other_are_named():
    found = shown()
    short = dataclasses.replace(found.transitions, action=found.transitions.action[1:])
    with pytest.raises(OffroadError, match=r"4 episodes and 13 steps have an array 'action' of shape \(12, 2\)"):
        Demonstrations(short, found.lengths)
    with pytest.raises(OffroadError, match=r"\[3, 2, 5, 3\] steps have states for \[3, 2, 5\] steps"):
        Demonstrations(found.transitions, found.lengths, found.states[:3])


def test_states_are_drawn_evenly_from_episodes_whatever_their_length():
    found, random = shown(), np.random.default_rng(0)
    drawn = [found.sample_state(random) for _ in range(4000)]
    values = np.array([state["qpos"][0] for state in drawn])
    episodes = [values < 3, (values >= 3) & (values < 100), (values >= 100) & (values < 105), values >= 105]
    np.testing.assert_allclose([each.mean() for each in episodes], 0.25, atol=0.03)
    np.testing.assert_allclose([(values == 1).mean(), (values == 104).mean()], [1 / 12, 1 / 20], atol=0.02)
    assert all(len(state["qpos"]) == 2 + (state["qpos"][0] >= 100) for state in drawn)
    assert all(state["time"] == state["qpos"][0] % 100 for state in drawn)
    with pytest.raises(OffroadError, match="hold no states"):
        dataclasses.replace(found, states=None).sample_state(random)


def test_filling_adds_every_episode_as_one_rollout():
    class Recorder(Replay):
        def add(self, transitions, mask=None):
            assert mask.shape == transitions.reward.shape == (len(mask), 1)
            assert mask.all()
            assert (transitions.terminated | transitions.truncated)[:, 0].tolist() == [False] * (len(mask) - 1) + [True]
            super().add(transitions, mask)

    replay, found = Recorder(13), shown()
    found.fill(replay)
    stored = Transition(**replay.get_state()["ring"])
    jax.tree.map(np.testing.assert_array_equal, stored, found.transitions)
    with pytest.raises(OffroadError, match="13 steps of demonstrations do not fit a replay of capacity 12"):
        found.fill(Replay(12))


@pytest.mark.parametrize(("share", "rows"), [(0.25, 4), (0.1, 2), (0.01, 1), (0.97, 15)])
def test_the_share_of_demonstrations_is_exact(share, rows):
    replay = mixed(share)
    experience(replay)
    drawn = replay.sample(np.random.default_rng(0), (5, 16))
    assert drawn.demonstrated.shape == (5, 16)
    assert drawn.demonstrated.sum(axis=1).tolist() == [rows] * 5
    np.testing.assert_array_equal(drawn.demonstrated, drawn.reward < 1000)
    numbers = drawn.reward
    np.testing.assert_array_equal(
        drawn.observation["objects"], np.broadcast_to(numbers[..., None, None], (5, 16, 2, 3))
    )
    np.testing.assert_array_equal(drawn.next_observation["deep"]["gear"], numbers + 1)
    np.testing.assert_array_equal(drawn.action[..., 1], -numbers)


def test_demonstrations_are_never_overwritten():
    replay = mixed()
    for _ in range(10):
        experience(replay)
    assert len(replay.replay) == 30
    drawn = replay.sample(np.random.default_rng(0), 4000)
    assert set(drawn.reward[drawn.demonstrated]) == set(shown().transitions.reward)


def test_a_restored_replay_samples_the_same():
    replay = experience(mixed())
    other = DemonstrationReplay(Replay(30), experience(Replay(50)), 0.25)
    other.set_state(replay.get_state())
    one, same = (each.sample(np.random.default_rng(1), (3, 8)) for each in (replay, other))
    jax.tree.map(np.testing.assert_array_equal, one, same)


def test_mistakes_with_the_mixture_are_named():
    for share in (0, 1, -0.5):
        with pytest.raises(OffroadError, match=f"share of demonstrations in a batch is {share}"):
            mixed(share)
    with pytest.raises(OffroadError, match="empty; fill it"):
        DemonstrationReplay(Replay(3), Replay(3))


def test_demonstrations_are_relabelled_in_hindsight_within_their_episodes():
    """Goals and what is achieved are the step's number, so that a relabelled goal tells the step that it came from."""

    def relabel(observation, goal):
        return {**observation, "objects": observation["objects"] * 0 + goal}

    def achieved(observation):
        return np.repeat(observation["deep"]["gear"][..., None, None], 2, -2).astype(np.float32)

    task = GoalTask(achieved, relabel, lambda observation: -observation["objects"][..., 0, 0])
    apart = HindsightReplay(50, task, share=1.0)
    shown().fill(apart)
    replay = DemonstrationReplay(experience(HindsightReplay(30, task)), apart, 0.5)
    drawn = replay.sample(np.random.default_rng(0), (200, 8))
    rows = jax.tree.map(lambda x: x[drawn.demonstrated], drawn)
    number, goal = rows.observation["deep"]["gear"], rows.observation["objects"]
    ends = np.array([3, 5, 105, 108])  # what the last step of each episode led to
    assert np.all(goal > number[:, None, None])
    assert np.all(goal <= ends[np.searchsorted(ends, number, side="right")][:, None, None])
    assert np.any(goal[:, 0] != goal[:, 1])  # each entity by itself
    np.testing.assert_array_equal(rows.reward, -goal[:, 0, 0])


def test_training_learns_from_them_and_goes_on_after_an_interruption(tmp_path):
    """An agent that only clones plays as the demonstrator does, whatever it experiences itself."""
    where = np.linspace(-2, 2, 64, dtype=np.float32)[None, :, None]
    off = np.zeros((1, 64), bool)
    steps = Transition(where, 0.5 * where, -np.abs(where[..., 0]), where, off, ~off)
    demonstrations = Demonstrations.of_rollout(steps)

    def run(steps, **options):
        env, apart = VectorWrapper(point(4)), Replay(64)
        demonstrations.fill(apart)
        replay = DemonstrationReplay(Replay(1000), apart, 0.5)
        imitation = Imitation(weight_policy=0.0, q_filter=False)
        config = DDPGConfig(hidden=(32,), batch=32, learning_rate=1e-2, imitation=imitation)
        agent = DDPG.create(Spaces.of(env), config, jax.random.key(0))
        options |= {"learning_starts": 64, "train_every": 8, "update_ratio": 0.5, "out": tmp_path, "progress": False}
        return off_policy(agent, env, steps, replay=replay, **options).agent

    run(320)
    resumed = run(960, resume=True)
    np.testing.assert_allclose(resumed.act(where[0])[0], 0.5 * where[0], atol=0.1)
