// A first-in, first-out of heads: what a worker has out, in its order. On the queue's thread.

/// Heads in order, as many as a queue has. On the queue's thread.
@safe struct HeadQueue: ~Copyable {
  // SAFETY: `size` heads; indices stay below it.
  private let heads: UnsafeMutablePointer<UInt16>
  private let size: Int
  private var start = 0
  private(set) var count = 0

  init(size: UInt16) {
    self.size = max(1, Int(size))
    unsafe heads = .allocate(capacity: self.size)
    unsafe heads.initialize(repeating: 0, count: self.size)
  }

  deinit { unsafe heads.deallocate() }

  var isEmpty: Bool { count == 0 }
  var first: UInt16? { count > 0 ? unsafe heads[start] : nil }

  /// A queue has no more heads than there is room for.
  mutating func append(_ head: UInt16) {
    guard count < size else { return }
    let place = start + count
    unsafe heads[place >= size ? place - size : place] = head
    count += 1
  }

  mutating func removeFirst() {
    guard count > 0 else { return }
    start = start + 1 == size ? 0 : start + 1
    count -= 1
  }
}
