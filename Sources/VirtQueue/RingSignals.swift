// The order in which a device touches the words by which it and its driver let each other sleep (virtio 1.3 §2.7.10,
// §2.8.10), apart from ring formats and from memory. Both rings follow it; so does the exhaustive model in the tests,
// which loses a wake-up with any step left out. What is modelled is what ships.

/// The steps on shared memory, one requirement each.
@usableFromInline package protocol RingSignals: ~Copyable {
  /// What `show` knows and `wantsCall` needs: where the driver had been before.
  associatedtype Before
  /// Shows the driver what was completed.
  mutating func show() -> Before
  /// Orders every earlier store before every later load, for other processors too.
  mutating func fence()
  /// Reads when the driver wants a call, and decides whether that is now.
  mutating func wantsCall(since before: Before) -> Bool
  /// Asks the driver for a kick with the next chain.
  mutating func askForKick()
  /// Looks at the ring; true where there is something to do before sleeping.
  mutating func lookAgain() -> Bool
}

extension RingSignals where Self: ~Copyable {
  /// Shows a batch; true where the driver is to be called for it. Without the fence the device may read an old wish
  /// while its batch is still in its store buffer, and the driver sleeps on it.
  @inlinable @inline(__always)
  package mutating func showAndAsk() -> Bool {
    let before = show()
    // Pairs with the driver's fence between its wish and its look at what is used.
    fence()
    return wantsCall(since: before)
  }

  /// Before sleeping; true: do not sleep. Without the fence, or without the second look, a chain that became available
  /// just before the driver saw the wish is never kicked for.
  @inlinable @inline(__always)
  package mutating func askAndLook() -> Bool {
    askForKick()
    // Pairs with the driver's fence between what it makes available and its read of our wish.
    fence()
    return lookAgain()
  }
}
