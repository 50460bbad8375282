"""The page in the browser: it shows a `Tuning`, and has knobs for it."""
