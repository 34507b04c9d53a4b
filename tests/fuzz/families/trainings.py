"""Random courses of a training, which `tests.fuzz.trainings` describes."""

from tests.fuzz.trainings import course

SHARE = 2
case = course.case
