"""The seam that runs work groups: in this process, or on Ray actors. Same groups, same bits."""
