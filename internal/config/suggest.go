package config

import "strings"

// suggest returns what the writer of an unknown key most likely meant: a name
// of the same table that differs by a typing error or two, or the same name in
// another table; otherwise nothing.
func suggest(name string, names, everywhere []string) string {
	best, bestDistance := "", 3
	for _, n := range names {
		d := distance(strings.ToLower(name), n)
		if d < bestDistance && d < len(n)-1 {
			best, bestDistance = n, d
		}
	}
	if best != "" {
		return best
	}
	for _, full := range everywhere {
		if strings.HasSuffix(full, "."+name) {
			return full
		}
	}
	return ""
}

// distance is the Levenshtein distance. Names far longer than any key are far
// from all of them, whatever they are.
func distance(a, b string) int {
	if len(a) > 64 {
		return len(a)
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, diagonal+1)
		}
	}
	return row[len(b)]
}
