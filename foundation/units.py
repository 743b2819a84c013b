"""Conversion factors. The only place that holds any; everything inside the platform is angstrom, radian, kcal/mol and kelvin."""

from __future__ import annotations

import math

DEG_PER_RAD = 180.0 / math.pi
ANG_PER_NM = 10.0
KJ_PER_KCAL = 4.184  # thermochemical calorie, exact
KCAL_MOL_PER_HARTREE = 627.509474  # CODATA 2018
HARTREE_PER_KCAL_MOL = 1.0 / KCAL_MOL_PER_HARTREE
BITS_PER_NAT = 1.0 / math.log(2.0)
KELVIN_OF_ZERO_CELSIUS = 273.15
