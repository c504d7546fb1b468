"""The fault campaign: clients at work while faults fire, and a checker of what they were told."""
