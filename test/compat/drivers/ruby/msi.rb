#!/usr/bin/ruby
# Gets tokens with ms_rest_azure's MSITokenProvider, as the Ruby SDK does. The package
# documentation of test/compat describes the arguments and the output.

require "json"
# ms_rest_azure uses these two and does not load them.
require "erb"
require "uri"

require "ms_rest_azure"

# The names of the identities in ms_rest_azure.
SELECTORS = { "client_id" => :client_id, "object_id" => :object_id, "resource_id" => :msi_res_id }

def make(request)
  settings = MsRestAzure::ActiveDirectoryServiceSettings.get_azure_settings.dup
  settings.token_audience = request["resource"]
  given = SELECTORS.select { |name, _| request.key?(name) }.to_h { |name, id| [id, request[name]] }
  MsRestAzure::MSITokenProvider.new(50342, settings, given.empty? ? nil : given)
end

def ask(provider)
  provider.get_authentication_header
  { token: provider.token, expires_on: provider.token_expires_on.to_i }
rescue StandardError => e # whatever the library raises is the result
  { error: e.class.name, message: e.message }
end

def milliseconds
  Process.clock_gettime(Process::CLOCK_MONOTONIC, :float_millisecond)
end

request = ARGV.to_h { |argument| argument.split("=", 2) }
provider = make(request)
request.fetch("calls", "1").to_i.times do |n|
  sleep request["pause"].to_f if n > 0
  began = milliseconds
  line = ask(provider)
  puts JSON.generate(line.merge(ms: milliseconds - began))
  $stdout.flush
end
