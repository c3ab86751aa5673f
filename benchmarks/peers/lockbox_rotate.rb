# Peer: Lockbox.rotate on an Active Record model, as its documentation says.
#
# ruby lockbox_rotate.rb seal ROWS   fills source_lockbox with values that Lockbox sealed under the old key
# ruby lockbox_rotate.rb rotate      moves table customers to the new key
require "stringio"
require "logger"
require "json"
require "active_record"
require "lockbox"

ActiveRecord::Base.establish_connection(ENV.fetch("DATABASE_URL"))

class Customer < ActiveRecord::Base
  lockbox_encrypts :body,
    encrypted_attribute: "ciphertext",
    key: ENV.fetch("KEY_V2"),
    previous_versions: [{key: ENV.fetch("KEY_V1")}]
end

def seal(rows)
  box = Lockbox.new(key: ENV.fetch("KEY_V1"), encode: true)
  connection = ActiveRecord::Base.connection.raw_connection
  found = connection.exec_params("SELECT n, substr(gcm, 4) FROM source WHERE n <= $1 ORDER BY n", [rows])
  connection.copy_data("COPY source_lockbox (n, value) FROM STDIN") do
    found.each_row do |number, value|
      connection.put_copy_data("#{number}\t#{box.encrypt(box.decrypt(value))}\n")
    end
  end
end

def rotate
  rows = Customer.count
  began = Process.clock_gettime(Process::CLOCK_MONOTONIC)
  Lockbox.rotate(Customer, attributes: [:body])
  seconds = Process.clock_gettime(Process::CLOCK_MONOTONIC) - began
  puts JSON.generate(rows: rows, seconds: seconds)
end

case ARGV[0]
when "seal" then seal(Integer(ARGV[1]))
when "rotate" then rotate
else abort "usage: lockbox_rotate.rb seal ROWS | rotate"
end
