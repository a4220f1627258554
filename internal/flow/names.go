package flow

// protoNames are the names that conntrack(8) prints.
var protoNames = [256]string{
	ICMP: "icmp", TCP: "tcp", UDP: "udp", DCCP: "dccp", GRE: "gre",
	ICMPv6: "icmpv6", SCTP: "sctp", UDPLite: "udplite",
}

var tcpStateNames = [...]string{
	TCPNone: "NONE", TCPSynSent: "SYN_SENT", TCPSynRecv: "SYN_RECV", TCPEstablished: "ESTABLISHED",
	TCPFinWait: "FIN_WAIT", TCPCloseWait: "CLOSE_WAIT", TCPLastAck: "LAST_ACK", TCPTimeWait: "TIME_WAIT",
	TCPClose: "CLOSE", TCPSynSent2: "SYN_SENT2",
}

var sctpStateNames = [...]string{
	SCTPNone: "NONE", SCTPClosed: "CLOSED", SCTPCookieWait: "COOKIE_WAIT", SCTPCookieEchoed: "COOKIE_ECHOED",
	SCTPEstablished: "ESTABLISHED", SCTPShutdownSent: "SHUTDOWN_SENT", SCTPShutdownRecd: "SHUTDOWN_RECD",
	SCTPShutdownAckSent: "SHUTDOWN_ACK_SENT", SCTPHeartbeatSent: "HEARTBEAT_SENT", SCTPHeartbeatAcked: "HEARTBEAT_ACKED",
}

// statusNames names the status bits, lowest first.
var statusNames = [...]string{
	"expected", "seen_reply", "assured", "confirmed", "src_nat", "dst_nat", "seq_adjust", "src_nat_done",
	"dst_nat_done", "dying", "fixed_timeout", "template", "nat_clash", "helper", "offload", "hw_offload",
}

// ProtoName is the lower-case name of an IP protocol that conntrack treats by
// name, "unknown" for all others.
func ProtoName(proto uint8) string {
	if n := protoNames[proto]; n != "" {
		return n
	}
	return "unknown"
}

// TCPStateName is the name of a TCP* state, empty for a number without one.
func TCPStateName(state uint8) string { return nameAt(tcpStateNames[:], state) }

// SCTPStateName is the name of an SCTP* state, empty for a number without one.
func SCTPStateName(state uint8) string { return nameAt(sctpStateNames[:], state) }

func nameAt(names []string, i uint8) string {
	if int(i) < len(names) {
		return names[i]
	}
	return ""
}
