package lab

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

// Process is a program that runs inside a node.
type Process struct {
	Cmd  *exec.Cmd
	done chan struct{}
	err  error // of Wait; valid once done is closed
	kill sync.Once
}

// Command is exec.Command for a program that [Node.Start] or [Node.Output] will
// run in the namespace. Starting it by its own methods would run it outside.
func (n *Node) Command(name string, args ...string) *exec.Cmd {
	return exec.Command(name, args...)
}

// Start starts cmd inside the namespace. It is killed when the lab is closed, and
// also when this process dies in whatever way.
func (n *Node) Start(cmd *exec.Cmd) (*Process, error) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL

	l := n.lab
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, fmt.Errorf("lab: %s: start %s: %w", n.name, cmd.Path, os.ErrClosed)
	}
	// The kernel sends the death signal when the parent thread ends, not the
	// parent process: children need a thread that stays.
	if l.spawner == nil {
		l.spawner = newThread()
	}
	if err := l.spawner.inside(n.ns, cmd.Start); err != nil {
		return nil, fmt.Errorf("lab: %s: start %s: %w", n.name, cmd.Path, err)
	}
	p := &Process{Cmd: cmd, done: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	l.processes = append(l.processes, p)
	return p, nil
}

// Output runs cmd inside the namespace to its end and returns what it wrote to
// both of its outputs.
func (n *Node) Output(cmd *exec.Cmd) ([]byte, error) {
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out // one writer: os/exec copies by one goroutine
	p, err := n.Start(cmd)
	if err != nil {
		return nil, err
	}
	if err := p.Wait(); err != nil {
		return out.Bytes(), fmt.Errorf("lab: %s: %s: %w", n.name, cmd.Path, err)
	}
	return out.Bytes(), nil
}

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Wait waits for the end of the process and returns how it ended, as
// exec.Cmd.Wait does. Many may wait.
func (p *Process) Wait() error {
	<-p.done
	return p.err
}

// Kill kills the process at once (SIGKILL). It does not wait.
func (p *Process) Kill() {
	p.kill.Do(func() { _ = p.Cmd.Process.Kill() }) // an error says that it has ended
}

// Stop asks the process to end (SIGTERM), kills it if it is still there after
// the timeout, and returns how it ended.
func (p *Process) Stop(timeout time.Duration) error {
	if err := p.Cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-p.done:
	case <-time.After(timeout):
		p.Kill()
		<-p.done
	}
	return p.err
}
