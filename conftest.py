"""Only here may pytest plugins be named; everything else is in tests/."""

pytest_plugins = ["tests.programs", "tests.e2e.running"]
