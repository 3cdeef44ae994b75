"""For tests of Mixers: `assert_equivalent` and `compare`, Hypothesis strategies, and failing calls as code."""
