"""Curiosity: exploring without reward, and knowing when not to."""

from offroad.studies.curiosity import pictures
from offroad.studies.curiosity.claims import rung_arm, verdict, weight_arm
from offroad.studies.curiosity.doom import (
    EXPLORERS,
    LADDER,
    d1_random,
    d1_ranking,
    d1_scaled,
    d4_as_is,
    d4_finetuned,
    d4_scratch,
    explorer,
    noise,
    rung,
)
from offroad.studies.curiosity.platforms import d7_finetuned, d7_random, d7_scratch, runner
from offroad.studies.curiosity.rooms import WEIGHTS, d6_random, eipo, fixed_weight, viewer
from offroad.studies.curiosity.settings import STARTS, CuriosityBudget
from offroad.studies.study import Arm, Published, Study

ICM = "Pathak, Agrawal, Efros and Darrell 2017, arXiv 1705.05363"
MARIO = f"{ICM}, table 1: mean distance without any reward, in units of the game"

ARMS: dict[str, Arm] = {
    "d1_random": d1_random,
    "d1_ranking": d1_ranking,
    **{name: explorer(method) for name, method in EXPLORERS.items()},
    "d1_scaled": d1_scaled,
    **{rung_arm(method, start): rung(method, start) for method in LADDER for start in STARTS},
    "d3_icm": noise("d3_icm", "ICM, without and with noise over 40 % of the view.", "icm"),
    "d3_pixels": noise("d3_pixels", "Prediction error in pixels, without and with the noise.", "icm_pixels"),
    "d4_as_is": d4_as_is,
    "d4_finetuned": d4_finetuned,
    "d4_scratch": d4_scratch,
    **{weight_arm(weight): fixed_weight(weight) for weight in WEIGHTS},
    "d5_eipo": eipo(),
    "d6_random": d6_random,
    "d6_icm": viewer("icm", "ICM."),
    "d6_rnd": viewer("rnd", "Random network distillation."),
    "d6_disagreement": viewer("disagreement", "Disagreement of an ensemble."),
    "d6_e3b": viewer("e3b", "Episodic novelty in features of an inverse model."),
    "d6_reachability": viewer("reachability", "Reachability."),
    "d7_random": d7_random,
    "d7_icm": runner("icm", "ICM, trained on the training levels and examined as it is."),
    "d7_rnd": runner("rnd", "Random network distillation, likewise."),
    "d7_finetuned": d7_finetuned,
    "d7_scratch": d7_scratch,
}

# Relative to one arm of D1 with all seeds.
SHARES: dict[str, float | int] = {
    name: 2.6 if method.recurrent else 0.33 for name, method in EXPLORERS.items() if not method.main
}
for start, cost in {"d3_": 2, "d5_": 0.3, "d6_": 0.1}.items():
    SHARES |= {name: cost for name in ARMS if name.startswith(start)}
SHARES |= {
    "d1_random": 0.2,
    "d1_ranking": 0.2,
    "d1_scaled": 0.05,
    "d4_as_is": 0.1,
    "d6_random": 0.01,
    "d7_random": 0.01,
}

STUDY = Study(
    name="curiosity",
    title="Curiosity without reward, and when not to explore",
    claim=(
        "An agent that is paid for its own prediction errors, in features that keep what its actions affect, explores "
        "a 3-D maze without any reward, finds rewards that are too far for others, ignores noise, and carries over to "
        "new places. Where the reward is easy to find, exploring costs, and EIPO knows when to leave it."
    ),
    source=f"{ICM}; Chen et al. 2022, arXiv 2211.07627",
    published=(
        Published("maze, sparse, mean score at convergence: ICM + A3C", 100.0, "%", ICM),
        Published("maze, sparse, mean score at convergence: A3C", 0.0, "%", ICM),
        Published("maze, sparse, mean score at convergence: TRPO", 26.0, "%", ICM),
        Published("maze, sparse, mean score at convergence: VIME + TRPO", 46.1, "%", ICM),
        Published("maze, very sparse, runs with a perfect score: ICM + A3C", 66, "%", ICM),
        Published("maze, very sparse: A3C, ICM in pixels", "never", "", ICM),
        Published("level 1, trained there for 1.5 million iterations", 711.0, "", MARIO),
        Published("level 2, policy of level 1 as it is", 31.9, "", MARIO),
        Published("level 2, fine-tuned by curiosity for 1.5 million iterations", 466.0, "", MARIO),
        Published("level 2, from scratch, 1.5 million iterations", 399.7, "", MARIO),
        Published("level 3, policy of level 1 as it is", 319.3, "", MARIO),
        Published("level 3, fine-tuned by curiosity for 1.5 million iterations", 97.5, "", MARIO),
        Published("level 3, from scratch, 1.5 million iterations", 11.8, "", MARIO),
    ),
    arms=ARMS,
    shares=SHARES,
    profiles={
        "quick": CuriosityBudget(
            seeds=1, minutes=20, worlds=16, ablation_seeds=1, coverage=0, recurrent=0, ladder=0, balance=100_000,
            television=100_000, platformer=100_000, episodes=48,
        ),
        "cpu": CuriosityBudget(
            seeds=3, minutes=1200, worlds=16, ablation_seeds=1, coverage=1_000_000, recurrent=2_000_000,
            ladder=500_000, noise_start=24, transfer_start=24, balance=500_000,
            television=200_000, platformer=500_000, episodes=48,
        ),
        "paper": CuriosityBudget(
            seeds=5, minutes=25_000, worlds=16, ablation_seeds=3, coverage=5_000_000, recurrent=20_000_000,
            ladder=10_000_000, noise_start=10, transfer_start=15, balance=2_000_000,
            television=1_000_000, platformer=5_000_000, episodes=100,
        ),
    },
    verdict=verdict,
    figures=(
        pictures.coverage_curves,
        pictures.ranking,
        pictures.occupancy,
        pictures.animation,
        pictures.ladder,
        pictures.noise,
        pictures.balance,
        pictures.television,
        pictures.platformer,
    ),
)  # fmt: skip
