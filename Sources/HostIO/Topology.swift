// Processors and memory nodes of the host. Asked when threads and rings are set up, before the sandbox
// closes.

import CLinux
import CNuma
import Glibc

/// On a host with one memory node everything about nodes does nothing. What the kernel refuses (a node
/// without memory, a container without the calls) is left to its own choice: memory comes from wherever there
/// is some.
public enum Topology {
  /// The processors that this thread may run on, ascending.
  public static var allowedProcessors: [Int] {
    // SAFETY: the call fills at most the array's count.
    let list = unsafe [UInt16](unsafeUninitializedCapacity: 1024) { buffer, count in
      let found = unsafe clx_allowed_cpus(buffer.baseAddress, buffer.count)
      count = max(0, min(Int(found), 1024))
    }
    return list.map(Int.init)
  }

  /// Parses "0,2-5" into processor numbers below 1024, in the order given. Throws `badProcessorList`.
  public static func processors(_ list: String) throws(HostError) -> [Int] {
    var result: [Int] = []
    for part in list.split(separator: ",", omittingEmptySubsequences: false) {
      let ends = part.split(separator: "-", omittingEmptySubsequences: false).map { end in
        end.utf8.allSatisfy { (UInt8(ascii: "0")...UInt8(ascii: "9")).contains($0) } ? Int(end) : nil
      }
      guard (1...2).contains(ends.count), let first = ends[0], let last = ends[ends.count - 1], first <= last,
        last < 1024
      else { throw .badProcessorList(list) }
      result.append(contentsOf: first...last)
    }
    return result
  }

  /// How many memory nodes there are; 1 where the kernel knows of none.
  public static var nodeCount: Int {
    numa_available() < 0 ? 1 : max(1, Int(numa_num_configured_nodes()))
  }

  /// The node that the page at an address lies on; nil where it is not there yet or cannot be told.
  public static func node(of address: UnsafeRawPointer) -> Int? {
    guard nodeCount > 1 else { return 0 }
    var page: UnsafeMutableRawPointer? = unsafe UnsafeMutableRawPointer(mutating: address)
    var status: Int32 = -1
    // SAFETY: asks about one page; nothing is moved when no target nodes are given.
    guard unsafe move_pages(0, 1, &page, nil, &status, 0) == 0, status >= 0 else { return nil }
    return Int(status)
  }

  /// Moves the calling thread to a node's processors, and what it allocates from now on to its memory. False
  /// where the one or the other stays as it is. A thread that has processors of its own wants `allocateOn`
  /// alone.
  @discardableResult
  public static func runOn(node: Int) -> Bool {
    guard nodeCount > 1, isNode(node) else { return false }
    let moved = numa_run_on_node(Int32(node)) == 0
    return allocateOn(node: node) && moved
  }

  /// Lets what the calling thread allocates from now on come from a node as long as that has some.
  @discardableResult
  public static func allocateOn(node: Int) -> Bool {
    guard nodeCount > 1, isNode(node) else { return false }
    // SAFETY: the call reads the mask. Not libnuma's own, which prints its failures.
    return unsafe withMask(of: node) { unsafe set_mempolicy(MPOL_PREFERRED, $0, $1) == 0 }
  }

  /// Lets the pages of a range come from a node as long as that has some; those that are there already stay.
  /// The range begins at a page.
  @discardableResult
  public static func prefer(node: Int, for range: UnsafeMutableRawBufferPointer) -> Bool {
    guard nodeCount > 1, isNode(node), let base = range.baseAddress else { return false }
    // SAFETY: sets a policy on pages of the caller's; their bytes are not touched.
    return unsafe withMask(of: node) {
      unsafe mbind(base, UInt(range.count), MPOL_PREFERRED, $0, $1, 0) == 0
    }
  }

  private static func isNode(_ node: Int) -> Bool {
    (0..<1024).contains(node) && numa_node_size64(Int32(node), nil) >= 0
  }

  /// A set of one node, and one more than its number of bits, as the kernel counts them.
  private static func withMask(of node: Int, _ body: (UnsafePointer<UInt>, UInt) -> Bool) -> Bool {
    var mask = [UInt](repeating: 0, count: 16)
    mask[node / 64] = 1 << UInt(node % 64)
    // SAFETY: the array's own storage, for the call.
    return unsafe mask.withUnsafeBufferPointer { words in
      guard let base = words.baseAddress else { return false }
      return unsafe body(base, 1025)
    }
  }
}
