// PostgreSQL for any number of replicas: in the network alone, Entra alone; the broker's identity is its administrator.

@description('Region.')
param location string

@description('Tags of every resource.')
param tags object

@description('Log Analytics workspace for diagnostics.')
param workspaceId string

@description('Subnet delegated to PostgreSQL.')
param subnetId string

@description('Private DNS zone that the server\'s name is put into.')
param privateDnsZoneId string

@description('Object id of the broker\'s identity.')
param principalId string

@description('Name of the broker\'s identity: its user name.')
param principalName string

@description('Compute.')
param skuName string

@description('Tier of the compute.')
param skuTier string

@description('Storage in GB.')
param storageGB int

@description('A standby in another zone.')
param highAvailability bool

@description('Backups in the paired region too.')
param geoBackup bool

var databaseName = 'token_broker'

// https://learn.microsoft.com/azure/templates/microsoft.dbforpostgresql/2025-08-01/flexibleservers
resource server 'Microsoft.DBforPostgreSQL/flexibleServers@2025-08-01' = {
  name: 'psql-${uniqueString(resourceGroup().id)}'
  location: location
  tags: tags
  sku: {
    name: skuName
    tier: skuTier
  }
  properties: {
    createMode: 'Default'
    version: '16'
    storage: {
      storageSizeGB: storageGB
      autoGrow: 'Enabled'
    }
    authConfig: {
      activeDirectoryAuth: 'Enabled'
      passwordAuth: 'Disabled'
      tenantId: tenant().tenantId
    }
    backup: {
      backupRetentionDays: highAvailability ? 35 : 7
      geoRedundantBackup: geoBackup ? 'Enabled' : 'Disabled'
    }
    highAvailability: {
      mode: highAvailability ? 'ZoneRedundant' : 'Disabled'
    }
    network: {
      publicNetworkAccess: 'Disabled'
      delegatedSubnetResourceId: subnetId
      privateDnsZoneArmResourceId: privateDnsZoneId
    }
  }
}

// https://learn.microsoft.com/azure/templates/microsoft.dbforpostgresql/2025-08-01/flexibleservers/administrators
resource administrator 'Microsoft.DBforPostgreSQL/flexibleServers/administrators@2025-08-01' = {
  parent: server
  name: principalId
  properties: {
    principalType: 'ServicePrincipal'
    principalName: principalName
    tenantId: tenant().tenantId
  }
}

// https://learn.microsoft.com/azure/templates/microsoft.dbforpostgresql/2025-08-01/flexibleservers/databases
resource database 'Microsoft.DBforPostgreSQL/flexibleServers/databases@2025-08-01' = {
  parent: server
  name: databaseName
  properties: {
    charset: 'UTF8'
    collation: 'en_US.utf8'
  }
  // A server takes one change at a time.
  dependsOn: [
    administrator
  ]
}

// https://learn.microsoft.com/azure/templates/microsoft.insights/2021-05-01-preview/diagnosticsettings
resource diagnostics 'Microsoft.Insights/diagnosticSettings@2021-05-01-preview' = {
  name: 'to-workspace'
  scope: server
  properties: {
    workspaceId: workspaceId
    logs: [
      {
        category: 'PostgreSQLLogs'
        enabled: true
      }
    ]
    metrics: [
      {
        category: 'AllMetrics'
        enabled: true
      }
    ]
  }
}

@description('BROKER_DATABASE_URL: no password in it, for the broker shows its Entra token.')
output url string = 'postgresql+asyncpg://${principalName}@${server.properties.fullyQualifiedDomainName}:5432/${database.name}?ssl=verify-full'
