"""What a person looks at: tables, pictures, files that say how good a run or a dictionary is."""
