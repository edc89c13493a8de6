"""Attacks: failing and killed calls, random kills, small disks, bad and damaged input.

`make attack` runs them and prints how many of what were tried. SURGEON_ATTACK_SEED chooses the
random ones (0 if unset), SURGEON_ATTACK_SECONDS about how long all of them take together.
"""
