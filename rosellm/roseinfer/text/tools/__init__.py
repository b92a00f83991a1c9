"""Tool calls in answers: a module for each format, and the stage that reads them all."""
