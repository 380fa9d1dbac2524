"""A scripted expert for `offroad/Stack-v0`: it clears sites, picks, carries and places, and tries again what failed.

It has no memory: what it does depends on one observation alone, so that it can take over from any state and label any
state for imitation. Shapes: N worlds, n slots for blocks. Lengths in metres.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from offroad.envs.stack.scene import BLOCK, OPEN
from offroad.envs.stack.stack import DECISIONS
from offroad.errors import unknown

# How near, along x and y, another block's centre must not be to the middle of
FINGERS_X = 0.0615  # fingers at its height (along y it depends on how far they are open)
PALM = (0.057, 0.092)  # a hand at least PALM_HEIGHT below it
PALM_HEIGHT = 0.03
SITE = (0.066, 0.092)  # a goal, before its block is brought
CORRIDOR = (0.07, 0.082, 9.0)  # the hand's way at the blocks' height
FIST = (0.064, 0.042)  # the closed fingers at its height

FINGER = 0.014  # thickness
WIDE, NARROW = 0.033, 0.0285  # opening of each finger round a block, and beside a neighbour
TOUCH = 0.061  # between the hand and a block beside its closed fingers, along x
FREED = 0.075  # along x between two blocks, for a finger that comes down beside one
RUN_UP = 0.013  # before a push
PUSH = 0.03  # at most, in one decision
GRIPS = (0.0, -0.01, 0.01, -0.02, 0.02)  # of the hand along x from the block's middle, tried in this order
SPOTS = np.stack(np.meshgrid(*[np.arange(-0.24, 0.241, 0.04)] * 2), -1).reshape(-1, 2)  # where to put blocks aside


class Expert:
    """Solves every task of the environment with any number of blocks; `decision` is that of the environment."""

    def __init__(self, decision: str = "long"):
        if decision not in DECISIONS:
            raise unknown("decision", decision, DECISIONS)
        self.reach = DECISIONS[decision].reach
        self.gripper_first = DECISIONS[decision].gripper_first > 0

    def act(self, observation: Mapping[str, ndarray]) -> Float[ndarray, "N 4"]:
        """The actions for a batch of observations."""
        view = _View(observation)
        in_hand, held = view.in_hand()
        place, keep = _place(view, in_hand, held)
        put_down = held & _within(view.of(in_hand) - place, 0.006, 0.006, 0.004) & ~keep
        carry = held & ~put_down
        target, finished = _next_block(view)
        target, push, pushed = _push(view, target)
        push &= ~carry & ~finished
        pick = ~carry & ~finished & ~push
        grip, opening = view.grip(target)
        grasp = pick & ~put_down & _within(grip - view.hand, 0.006, 0.006, 0.008)

        # Where the hand goes, in each case.
        offset = view.hand - view.of(in_hand)
        low = np.where(view.present, view.block[..., 2], 0.0).max(1)
        goal = np.maximum(grip, [-np.inf, -np.inf, 0.02])
        goal[push] = pushed[push]
        goal[carry] = (place + offset)[carry]
        goal[finished & ~carry] = view.hand[finished & ~carry]
        goal[finished & ~carry, 2] = np.maximum(low + 0.13, view.hand[:, 2])[finished & ~carry]
        opening[carry | grasp | push] = 0.0

        move, aligned = _travel(view, goal, carry, in_hand, self.reach)
        striking = push & view.beside(target)
        move[striking] = np.clip(goal - view.hand, -PUSH, PUSH)[striking]  # gently, or the block slides on

        around, enclosing = view.around()
        free = enclosing & ~carry & ~grasp
        opening[free] = view.grip(around, view.hand)[1][free]
        if self.gripper_first:
            move[put_down | grasp] = [0.0, 0.0, self.reach]
        else:
            slow = carry & aligned
            move[slow, 2] = np.maximum(move[slow, 2], -0.6 * self.reach)
            unready = np.abs(view.fingers - opening) > 0.004
            above = pick & aligned & (view.hand[:, 2] > goal[:, 2] + 0.04) | push & aligned & ~striking
            move[grasp | put_down | (free | above) & unready | carry & (view.finger_speed > 0.02)] = 0.0
        gripper = opening / (BLOCK / 2) - 1
        return np.concatenate((np.clip(move / self.reach, -1, 1), gripper[:, None]), 1).astype(np.float32)


class _View:
    """The numbers that decide, read from a batch of observations; absent blocks and their goals are far away."""

    def __init__(self, observation: Mapping[str, ndarray]):
        robot, objects = observation["robot"], observation["objects"]
        self.present = observation["mask"] > 0
        self.hand, self.fingers = robot[:, :3], robot[:, 3:5].mean(1)
        self.finger_speed = np.abs(robot[:, 8:10]).max(1)
        self.block = np.where(self.present[..., None], objects[..., :3], 10.0)
        self.goal = np.where(self.present[..., None], observation["goals"], -10.0)
        yaw = np.abs(np.arctan2(objects[..., 6], objects[..., 7])) / 4
        self.width = BLOCK / 2 * (np.cos(yaw) + np.sin(yaw))  # half of it, along y
        self.rows, self.index = np.arange(len(robot)), np.arange(objects.shape[1])
        between = self.block[:, None, :, :] - self.block[:, :, None, :]  # from block i to block j
        self.on_top = _within(between - [0, 0, BLOCK], 0.045, 0.045, 0.02)  # j rests on i
        gap = self.goal[:, :, None, :] - self.goal[:, None, :, :]
        beneath = _within(gap - [0, 0, BLOCK], 0.04, 0.04, 0.01)  # goal j supports goal i
        self.air = self.present & (self.goal[..., 2] > 0.036) & ~beneath.any(-1)
        error = self.block - self.goal
        tolerance = np.where(self.on_top.any(-1), 0.021, 0.013)
        self.placed = (np.hypot(error[..., 0], error[..., 1]) < tolerance) & (np.abs(error[..., 2]) < 0.008)
        self.ready = self.present & ~self.placed & (~beneath | self.placed[:, None, :]).all(-1)

    def of(self, block: Int[ndarray, "N"]) -> Float[ndarray, "N 3"]:
        return self.block[self.rows, block]

    def others(self, block: Int[ndarray, "N"]) -> Bool[ndarray, "N n"]:
        return self.present & (self.index != block[:, None])

    def around(self) -> tuple[Int[ndarray, "N"], Bool[ndarray, "N"]]:
        """The block that the hand is round, and whether there is one."""
        inside = _within(self.block - self.hand[:, None], 0.036, 0.025, 0.032)
        return inside.argmax(1), inside.any(1)

    def in_hand(self) -> tuple[Int[ndarray, "N"], Bool[ndarray, "N"]]:
        """The block that the fingers hold, and whether there is one."""
        inside = _within(self.block - self.hand[:, None], 0.03, 0.015, 0.025)
        inside &= (self.fingers[:, None] > 0.01) & (self.fingers[:, None] < self.width + 0.0015)
        return inside.argmax(1), inside.any(1)

    def obstacles(self, block: Int[ndarray, "N"], opening: Float[ndarray, "N"], place: ndarray) -> Bool[ndarray, "N n"]:
        """Which other blocks are in the way of a hand round `block` at `place`."""
        gap = np.abs(self.block - place[:, None])
        height = self.block[..., 2] - place[:, None, 2]
        outer = opening + FINGER + BLOCK / 2 + 0.002
        fingers = (gap[..., 0] < FINGERS_X) & (gap[..., 1] < outer[:, None])
        palm = (gap[..., 0] < PALM[0]) & (gap[..., 1] < PALM[1]) & (height > PALM_HEIGHT)
        return self.others(block) & ((fingers & (height > -0.0385)) | palm)

    def grip(
        self, block: Int[ndarray, "N"], hand: Float[ndarray, "N 3"] | None = None
    ) -> tuple[Float[ndarray, "N 3"], Float[ndarray, "N"]]:
        """Where the hand goes to grip a block, unless that is given, and how far each finger opens.

        Wider for a block that is turned, narrower and off its middle if other blocks would be hit here or at its goal.
        """
        wide = np.clip(self.width[self.rows, block] + 0.006, WIDE, OPEN)
        narrow = np.full(len(wide), NARROW)
        middle = self.of(block)
        goal = np.where(self.ready[self.rows, block][:, None], self.goal[self.rows, block], 10.0)
        best, opening, cost = middle.copy(), narrow.copy(), np.full(len(block), np.inf)
        for width in (wide, narrow):
            for offset in GRIPS:
                place = middle + [offset, 0.0, 0.0] if hand is None else hand
                price = 2.0 * self.obstacles(block, width, place).any(1)
                price += self.obstacles(block, width, goal + [offset, 0.0, 0.0]).any(1)
                better = price < cost
                best[better], opening[better], cost[better] = place[better], width[better], price[better]
        return best, opening

    def stuck(self, block: Int[ndarray, "N"]) -> Bool[ndarray, "N"]:
        """Whether no grip on a block is free."""
        grip, opening = self.grip(block)
        return self.obstacles(block, opening, grip).any(1)

    def beside(self, block: Int[ndarray, "N"]) -> Bool[ndarray, "N"]:
        """Whether the closed hand is beside a block along x, at its height."""
        gap = np.abs(self.of(block) - self.hand)
        return (self.fingers < 0.01) & (gap[:, 0] < TOUCH + 2 * RUN_UP) & (gap[:, 1] < 0.01) & (gap[:, 2] < 0.02)


def _next_block(view: _View) -> tuple[Int[ndarray, "N"], Bool[ndarray, "N"]]:
    """Which block to move next, and whether all are in place."""
    order = view.goal[..., 2] + 1e-3 * view.index + 10.0 * view.air
    block = np.where(view.ready, order, np.inf).argmin(1)
    blocked = _blockers(view, block)
    block = np.where(blocked.any(1), np.where(blocked, view.block[..., 2], -1.0).argmax(1), block)
    for _ in view.index[1:]:
        above = view.on_top[view.rows, block]
        block = np.where(above.any(1), above.argmax(1), block)
    return block, ~view.ready.any(1)


def _blockers(view: _View, block: Int[ndarray, "N"]) -> Bool[ndarray, "N n"]:
    """Which blocks that are not in place lie where this one is to go."""
    goal = view.goal[view.rows, block]
    gap = view.block - goal[:, None]
    return view.others(block) & ~view.placed & _within(gap, *SITE, np.inf) & (gap[..., 2] > -0.03)


def _place(
    view: _View, block: Int[ndarray, "N"], held: Bool[ndarray, "N"]
) -> tuple[Float[ndarray, "N 3"], Bool[ndarray, "N"]]:
    """Where the block in the hand is to go, and whether the hand then keeps it.

    To its goal, in the air after all others, if that is ready and free; else out of the way.
    """
    place = view.goal[view.rows, block].copy()
    narrow = np.full(len(place), NARROW)
    place[view.obstacles(block, narrow, place + view.hand - view.of(block)).any(1), 2] += 0.041  # lets it fall
    air, placed = view.air[view.rows, block], view.placed[view.rows, block]
    unfinished = (view.others(block) & ~view.placed).any(1)
    waits = ~view.ready[view.rows, block] | _blockers(view, block).any(1)
    aside = held & np.where(air, unfinished, waits & ~placed)
    if aside.any():
        occupied = np.concatenate((np.where(view.others(block)[..., None], view.block, 10.0), view.goal), 1)
        gap = np.abs(SPOTS[:, None] - occupied[aside][:, None, :, :2])
        free = ((gap[..., 0] > 0.075) | (gap[..., 1] > 0.095)).all(-1)
        distance = np.linalg.norm(SPOTS - view.hand[aside, None, :2], axis=-1)
        spot = SPOTS[(distance + 10.0 * ~free).argmin(1)]
        place[aside] = np.concatenate((spot, np.full((len(spot), 1), BLOCK / 2)), 1)
    return place, air & ~aside


def _push(view: _View, block: Int[ndarray, "N"]) -> tuple[Int[ndarray, "N"], Bool[ndarray, "N"], Float[ndarray, "N 3"]]:
    """Where no finger fits between a block and its neighbour, the closed hand pushes one of them away along x.

    Returns which block to move, whether by pushing, and the hand's position before the push or, beside it, after.
    """
    narrow = np.full(len(block), NARROW)
    stuck = view.stuck(block)
    neighbour = np.where(view.obstacles(block, narrow, view.of(block)), _distance(view, block), np.inf)
    neighbour = np.where(np.isfinite(neighbour).any(1), neighbour.argmin(1), block)
    best, cost, hand = block.copy(), np.full(len(block), np.inf), view.hand.copy()
    for candidate in (block, neighbour):
        own = view.of(candidate)
        obstacles = view.obstacles(candidate, narrow, own)
        gap = view.block - own[:, None]
        for side in (-1.0, 1.0):  # where the block goes
            need = np.where(obstacles, side * gap[..., 0] + FREED, 0.0).max(1)
            before = own - [side * (TOUCH + RUN_UP), 0.0, 0.0]
            around = view.block - before[:, None]
            hit = _within(around, *FIST, 0.04) | (_within(around, *PALM, np.inf) & (around[..., 2] > PALM_HEIGHT))
            ahead = side * gap[..., 0]
            way = (ahead > 0) & (ahead < need[:, None] + 0.053) & (np.abs(gap[..., 1]) < 0.053) & (gap[..., 2] < 0.04)
            possible = stuck & ~((hit | way) & view.others(candidate)).any(1)
            crowded = (ahead > 0) & (ahead < need[:, None] + 0.08) & (np.abs(gap[..., 1]) < PALM[1])
            price = need + 0.5 * (crowded & view.others(candidate)).any(1)
            better = possible & (price < cost)
            after = own + np.stack((side * (need - TOUCH), 0 * need, 0 * need), 1)
            best, cost = np.where(better, candidate, best), np.where(better, price, cost)
            hand = np.where(better[:, None], np.where(view.beside(candidate)[:, None], after, before), hand)
    return best, np.isfinite(cost), hand


def _distance(view: _View, block: Int[ndarray, "N"]) -> Float[ndarray, "N n"]:
    return np.linalg.norm(view.block - view.of(block)[:, None], axis=-1)


def _travel(
    view: _View, goal: Float[ndarray, "N 3"], carry: Bool[ndarray, "N"], in_hand: Int[ndarray, "N"], reach: float
) -> tuple[Float[ndarray, "N 3"], Bool[ndarray, "N"]]:
    """The hand's motion: up above all blocks near its way, across, and down; and whether it is above the goal."""
    move = goal - view.hand
    aligned = _within(move, 0.006, 0.006, np.inf)
    below = np.where(carry, BLOCK / 2 + view.hand[:, 2] - view.of(in_hand)[:, 2], FINGER)  # how far things hang down
    others = view.present & ~(carry[:, None] & (view.index == in_hand[:, None]))

    def safe(end: Float[ndarray, "N 3"]) -> Float[ndarray, "N"]:
        low, high = np.minimum(end, view.hand)[:, None], np.maximum(end, view.hand)[:, None]
        inside = (view.block > low - CORRIDOR) & (view.block < high + CORRIDOR)
        top = np.where(inside.all(-1) & others, view.block[..., 2], -BLOCK / 2).max(1)
        return top + BLOCK / 2 + below + 0.013

    height = safe(goal)
    step = np.clip(move, -reach, reach)
    across = np.where((view.hand[:, 2] < safe(view.hand + step) - 0.004)[:, None], 0.0, step)
    across[:, 2] = height - view.hand[:, 2]
    return np.where(aligned[:, None], move, across), aligned


def _within(gap: ndarray, x: float, y: float, z: float) -> ndarray:
    return (np.abs(gap[..., 0]) < x) & (np.abs(gap[..., 1]) < y) & (np.abs(gap[..., 2]) < z)
