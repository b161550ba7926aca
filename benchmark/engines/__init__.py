"""An engine is `map`: in this process, or over several."""
