"""What SIE's components for Haystack share."""
