"""Everything about DreamBooth that knows no orchestrator."""
