"""A simple arm and a real one for the tests of this folder: what is logged, what is hidden."""

import mujoco
import numpy as np
from scipy.signal import butter, lfilter

from offroad.models import make_log

ARM = """<mujoco><option timestep="0.01" integrator="%(integrator)s"/><worldbody>
<body><joint name="a" type="hinge" axis="0 1 0" damping="0.3" armature="0.01" frictionloss="%(friction)s"/>
<geom type="capsule" size=".03" fromto="0 0 0 0 0 -.4" mass="1" contype="0"/>
<body pos="0 0 -.4"><joint name="b" type="hinge" axis="0 1 0" damping="0.1" armature="0.01"/>
<geom type="capsule" size=".03" fromto="0 0 0 0 0 -.3" mass="%(load)s" contype="0"/></body></body></worldbody>
<actuator><motor joint="a" gear="2"/><motor joint="b" gear="1"/></actuator></mujoco>"""


def arm(integrator="implicitfast", friction=0.0, load=0.5):
    return mujoco.MjModel.from_xml_string(ARM % {"integrator": integrator, "friction": friction, "load": load})


def random_state(seed, rows):
    return tuple(np.random.default_rng(seed).normal(size=(4, rows, 2)))


def excitation(seed, rows, size=1.5):
    b, a = butter(2, 0.1)
    u = lfilter(b, a, np.random.default_rng(seed).normal(size=(rows, 2)), axis=0)
    return size * u / u.std(0)


def record(model, u, delay=0, actuator=lambda u: u):
    data, q, qd = mujoco.MjData(model), [], []
    for t in range(len(u)):
        q.append(data.qpos.copy())
        qd.append(data.qvel.copy())
        data.ctrl[:] = actuator(u[max(t - delay, 0)])
        mujoco.mj_step(model, data)
    return np.array(q), np.array(qd)


def logged(model, seed=0, rows=2000, delay=0, actuator=lambda u: u, size=1.5):
    u = excitation(seed, rows, size)
    q, qd = record(model, u, delay, actuator)
    return make_log(q, u, qd, dt=0.01)
