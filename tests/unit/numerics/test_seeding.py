import hashlib

from dreambooth_core.numerics.seeding import derive_seed, generator_for


def test_seed_is_the_first_63_bits_of_the_keys_sha256():
    digest = hashlib.sha256(b"42/crop/3/17").hexdigest()
    assert derive_seed(42, "crop", 3, 17) == int(digest[:16], 16) // 2


def test_generator_has_the_seed_of_its_key():
    assert generator_for(42, "crop", 3).initial_seed() == derive_seed(42, "crop", 3)
    assert generator_for(42, "crop", 3).device.type == "cpu"
