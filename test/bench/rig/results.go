package rig

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// SaveResults writes the results of a benchmark to a file as JSON. Without a path it does nothing.
func SaveResults(path string, results any) error {
	if path == "" {
		return nil
	}
	b, err := json.MarshalIndent(results, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}

// LoadResults reads what SaveResults has written, into a pointer. A file that is not there has none.
func LoadResults(path string, results any) error {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, results); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}
