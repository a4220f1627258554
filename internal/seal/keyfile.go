package seal

import (
	"errors"
	"fmt"
	"os"
	"syscall"
)

// ReadKeyFile reads a key from a file that nobody but its owner may read or write,
// and whose owner is root or the user of this process.
func ReadKeyFile(path string) (Key, error) {
	// Without O_NONBLOCK a named pipe would be waited for.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return Key{}, fmt.Errorf("key file: %w", err)
	}
	defer f.Close()
	if err := checkKeyFile(f); err != nil {
		return Key{}, fmt.Errorf("key file %s: %w", path, err)
	}
	k, err := readKey(f)
	if err != nil {
		return Key{}, fmt.Errorf("key file %s: %w", path, err)
	}
	return k, nil
}

// checkKeyFile looks at the file that was opened, not at what has its name now.
func checkKeyFile(f *os.File) error {
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if !fi.Mode().IsRegular() {
		return errors.New("it is no regular file")
	}
	if mode := fi.Mode().Perm(); mode&0o077 != 0 {
		return fmt.Errorf("its mode is %04o, which opens it to others than its owner: chmod 0600 %s", mode, f.Name())
	}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok && st.Uid != 0 && int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("it belongs to user %d, who can change it: chown root %s", st.Uid, f.Name())
	}
	return nil
}
