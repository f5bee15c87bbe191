// What one turn of a queue may take, so that no neighbour on its thread waits long. Constants.

/// The share of a turn. Queues of one thread take turns, one each a round: a request waits behind at most one budget of
/// every other queue, whatever those are sent.
public enum QueueBudget {
  /// Chains.
  @inlinable public static var chains: Int { 64 }
  /// Chains before the first publication of a turn: a driver that polls works on what it was shown while we go on.
  @inlinable public static var firstChains: Int { 16 }
  /// Bytes in them, as many as the chains have at 4 KiB: a queue of large requests takes as long as one of small ones. The chain that
  /// crosses it is the last.
  @inlinable public static var bytes: Int { 1 << 18 }
}
