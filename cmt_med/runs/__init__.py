"""Trainings from data to report; the room that composes the others."""
