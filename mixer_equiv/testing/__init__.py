"""Tools for tests of Mixers: `assert_equivalent`, `compare`, Hypothesis strategies, and failing calls as code."""
